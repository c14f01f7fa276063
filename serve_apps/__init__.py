"""The HTTP service: gateway (FastAPI, no torch), matcher and reranker as Ray Serve deployments.

Reading order: config -> gateway (build_app) -> flow (one request) -> api (routes) -> schemas.
"""
