"""A catalogue of real, rendered media with planted factors, users who like some of them, and the truth about both.

write_tables plans and writes the tables and the truth; render_item makes one media file; oracle_scores reads the truth.
"""

from avrec_ray.datasets.synthetic.corpus import write_tables
from avrec_ray.datasets.synthetic.oracle import oracle_scores
from avrec_ray.datasets.synthetic.render import RenderedItem, RenderTask, render_item

__all__ = ["RenderTask", "RenderedItem", "oracle_scores", "render_item", "write_tables"]
