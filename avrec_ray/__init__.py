"""avrec_ray: from raw video and audio to a served recommendation feed."""

__version__ = "0.1.0"
