"""The words of a report, for readers who have not seen the code."""

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Full ranking",
        "Every item of the catalogue that a user had not met yet competes for the places of the list. Figures from "
        "rankings of a sample of items are higher and do not compare.",
    ),
    ("Target", "An item that a user went on to choose after the moment at which the lists were made."),
    (
        "NDCG at k",
        "How many targets are among the first k places and how far up: a target at rank r counts 1 / log2(1 + r), and "
        "the sum is divided by the best one possible. 0 is none, 1 is all targets first.",
    ),
    ("Recall at k", "Share of a user's targets that are among the first k places."),
    ("MRR at k", "One divided by the rank of the first target, 0 where none is among the first k places."),
    ("Coverage at k", "Share of the catalogue that is among the first k places of anybody's list."),
    (
        "Gini at k",
        "How unequally items share the places: 0 where all are shown equally often, close to 1 where a few take all.",
    ),
    (
        "Novelty at k",
        "How rarely the listed items were chosen before, in bits: one bit more means chosen half as often. An item "
        "without choices counts as half of the rarest chosen one.",
    ),
    ("Popularity at k", "Mean share of all earlier choices that went to a listed item."),
    (
        "Intra-list distance at k",
        "How different the items of a list are from each other: mean of 1 minus the cosine of the embeddings over all "
        "pairs. Each model is measured with the embeddings of this bundle.",
    ),
    ("Category distance at k", "Share of the pairs of a list that are of different categories."),
    (
        "Serendipity at k",
        "Targets that stand higher than a list by popularity would put them, weighted by how much higher.",
    ),
    (
        "Unexpected hits at k",
        "Share of the first k places that hold a target which the list of the most popular items lacks.",
    ),
    (
        "Miscalibration at k",
        "How far the categories of a list are from those of the user's own choices so far: Kullback-Leibler "
        "divergence, 0 where the shares agree.",
    ),
    (
        "Exposure ratio",
        "Share of the attention that the lists give to a group of items, divided by its share of what users went on to "
        "choose. 1 is as much as it earns. The place at rank r gets attention 1 / log2(1 + r).",
    ),
    (
        "Cold, new, head, mid, tail",
        "A cold item had no choice before test; a new user had fewer than five events so far. Head items took the "
        "first half of all choices, mid items the next 30 %, tail items the rest. The tables of exposure cut at 20 % "
        "and 80 % instead, which parts the few most popular items from the middle.",
    ),
    (
        "95 % interval",
        "Where the mean would lie in 95 of 100 draws of as many users; from resampling the users. It says nothing "
        "about another training of the same model.",
    ),
    ("Oracle", "On synthetic data, a ranking by the planted preferences: what the best possible model would reach."),
)
"""Word and meaning, in the order in which a report uses them."""
