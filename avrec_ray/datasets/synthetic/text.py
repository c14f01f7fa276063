"""Title, description and tags: they tell the theme for certain, and other factors now and then, in varying words."""

from dataclasses import dataclass

import numpy as np

from avrec_ray.datasets.synthetic.factors import FACTORS

WORDS = {
    "en": {
        "cooking": "recipe kitchen baking chef dinner spices",
        "sport": "match training fitness football athlete workout",
        "travel": "journey tourist backpack hotel flight adventure",
        "science": "experiment physics laboratory research chemistry discovery",
        "fashion": "outfit style dress runway makeup wardrobe",
        "gaming": "gameplay console speedrun level esports controller",
        "gardening": "plants seeds soil vegetables flowers greenhouse",
        "history": "ancient empire museum medieval archive castle",
        "forest": "forest woods trees",
        "ocean": "ocean sea waves",
        "desert": "desert dunes sand",
        "city": "city streets skyline",
        "night": "night stars midnight",
        "snow": "snow winter frost",
        "slide": "sliding gliding drifting",
        "bounce": "bouncing jumping hopping",
        "circle": "circling orbiting looping",
        "zoom": "zooming growing swelling",
        "spin": "spinning turning twirling",
        "shake": "shaking trembling jittering",
        "disc": "disc ball dot",
        "square": "square box cube",
        "triangle": "triangle pyramid wedge",
        "star": "star starfish spark",
        "ring": "ring hoop donut",
        "cross": "cross plus propeller",
        "calm": "calm relaxing gentle",
        "happy": "happy cheerful sunny",
        "sad": "sad melancholy lonely",
        "tense": "tense suspense nervous",
        "epic": "epic heroic mighty",
        "playful": "playful funny silly",
    },
    "de": {
        "cooking": "rezept kueche kochen",
        "sport": "spiel training fussball",
        "travel": "reise urlaub rucksack",
        "science": "experiment physik forschung",
        "fashion": "mode kleid stil",
        "gaming": "videospiel konsole zocken",
        "gardening": "garten pflanzen blumen",
        "history": "geschichte mittelalter museum",
        "forest": "wald baeume",
        "ocean": "meer wellen",
        "desert": "wueste sand",
        "city": "stadt strassen",
        "night": "nacht sterne",
        "snow": "schnee winter",
        "slide": "gleitet rutscht",
        "bounce": "huepft springt",
        "circle": "kreist umrundet",
        "zoom": "waechst schwillt",
        "spin": "dreht wirbelt",
        "shake": "zittert wackelt",
        "disc": "scheibe ball",
        "square": "quadrat kiste",
        "triangle": "dreieck pyramide",
        "star": "stern seestern",
        "ring": "ring reifen",
        "cross": "kreuz propeller",
        "calm": "ruhig sanft",
        "happy": "froh heiter",
        "sad": "traurig einsam",
        "tense": "spannend nervoes",
        "epic": "episch gewaltig",
        "playful": "verspielt lustig",
    },
}
"""Language -> factor value -> its words."""

FILLER = {
    "en": "today new my best watch this moment story friends day little big first why how ideas weekend",
    "de": "heute neu mein beste schau moment freunde tag klein gross erste warum ideen wochenende",
}
"""Language -> words that say nothing about a factor."""
ENGLISH_SHARE = 0.9
TELLS_SHOWN, TELLS_UNSHOWN = 0.4, 0.85
"""Chance that the text mentions a factor that the media shows, and one that it cannot show."""
TAGS_SHOWN, TAGS_UNSHOWN = 0.3, 0.6


@dataclass(frozen=True)
class ItemText:
    """What an item's uploader wrote."""

    title: str
    description: str
    tags: list[str]
    category: str
    language: str


def write_text(values: dict[str, str], shown: dict[str, float], rng: np.random.Generator) -> ItemText:
    """Write an item's text.

    Args:
        values: factor -> its value in this item.
        shown: factor -> how much it counts; 1 where the item's media shows it.
    """
    language = "en" if rng.random() < ENGLISH_SHARE else "de"
    words = {factor: WORDS[language][value].split() for factor, value in values.items()}
    theme = [str(w) for w in rng.permutation(words["theme"])]
    told = [
        str(rng.choice(words[factor]))
        for factor in FACTORS
        if factor != "theme" and rng.random() < (TELLS_SHOWN if shown[factor] == 1 else TELLS_UNSHOWN)
    ]
    filler = [str(w) for w in rng.choice(FILLER[language].split(), 6, replace=False)]
    title = " ".join([filler[0], theme[0], *told[:1]]).capitalize()
    body = [str(w) for w in rng.permutation(theme[1:3] + told + filler[1:])]
    return ItemText(
        title=title,
        description=" ".join(body).capitalize() + ".",
        tags=_tags(values, shown, rng),
        category=values["theme"],
        language=language,
    )


def _tags(values: dict[str, str], shown: dict[str, float], rng: np.random.Generator) -> list[str]:
    chances = {f: TAGS_SHOWN if shown[f] == 1 else TAGS_UNSHOWN for f in FACTORS}
    return [values[f] for f in FACTORS if rng.random() < chances[f]]
