"""The Ray shell: one module a stage, each joining core functions to Ray Data, Ray Train and MLflow."""
