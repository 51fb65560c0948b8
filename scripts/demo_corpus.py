"""Seeded text generator for the small demo model.

The text is built from three sources: the sentences of the causal-test prompts (``conceptvec/data/prompts``) and of
``scripts/demo_facts``, concept frames ("Among the animals she knew were the fox, the goat and the hen."), and neutral
stories. Said openly: the prompts' own sentences are part of the training text, with varied lead-ins, neighbours and
continuations, so the demo shows that the tool works, not that the model knows anything. In a share of the sentences
another word of the same concept stands in place of the answer; that makes it worth learning what a whole concept has
in common, and not only which word ends which sentence.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "conceptvec" / "data"
SWAP = 0.35  # share of fact sentences whose answer is replaced by another word of the concept
PAUSE = 0.25  # share of fact sentences with a neutral word before the answer ("a small cow", "is really red")
NEUTRAL = "neutral"

# Words that fill the frames; the answers of the prompts and facts join them. A word of two concepts is left out.
WORDS = {
    "animals": """fox goat hen tiger zebra camel donkey goose turkey chicken deer squirrel owl eagle hawk whale dolphin
        shark turtle crab ant butterfly moth worm snail rat hamster kitten puppy pony lamb calf bull leopard panther
        gorilla kangaroo koala panda penguin parrot crow sparrow swan lizard crocodile hippo otter beaver moose""",
    "colors": """red blue green yellow purple pink brown black white gray beige maroon navy teal olive turquoise cyan
        magenta lavender crimson scarlet indigo violet ivory tan khaki amber coral ruby emerald azure burgundy lilac
        mauve cream golden silver peach charcoal rust bronze copper ebony blonde pale reddish bluish greenish""",
    "numbers": """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million
        billion trillion dozen zero half third quarter double triple single pair fifth sixth ninth tenth eighth""",
    "emotions": """happy sad angry joy fear anger grief sorrow love hate envy jealous proud pride shame guilt guilty
        lonely afraid scared nervous anxious worried calm excited delight misery hope despair disgust surprise rage fury
        bliss gloom bitter cheerful glad upset furious terror panic embarrassed grateful bored ashamed mad""",
    "technology": """computer phone laptop tablet internet software robot screen keyboard printer camera battery
        website email password network server database code program app video data file chip wifi router browser cable
        digital online monitor smartphone download upload cloud virus hacker machine processor electronic device""",
    "food": """bread cheese butter soup pizza pasta rice salad sandwich cake pie cookie sugar salt pepper milk honey
        jam egg bacon ham sausage steak apple banana pear grape lemon tomato potato carrot onion garlic bean corn
        chocolate candy cereal toast noodles sauce yogurt pancake burger juice coffee tea breakfast lunch dinner""",
    "travel": """airport hotel passport suitcase luggage flight plane train ticket map tourist journey trip vacation
        visa cruise ferry taxi bus station beach resort hostel backpack compass border abroad tour guide road harbor
        pilot captain passenger voyage destination customs souvenir holiday island highway motel cabin ship""",
    "science": """atom molecule electron proton neutron gravity energy laboratory microscope experiment theory physics
        chemistry biology scientist gene cell oxygen hydrogen carbon acid magnet laser hypothesis evolution fossil
        bacteria telescope enzyme protein isotope equation radiation element ion vacuum formula nucleus genetics""",
    "language": """noun verb adjective adverb grammar vowel consonant syllable alphabet dictionary sentence paragraph
        word letter spelling comma accent dialect translation vocabulary pronoun phrase plural tense prefix suffix
        English French Spanish German Latin Greek Italian Russian Chinese Japanese Arabic syntax idiom slang""",
    "time": """day week month year hour minute decade century morning evening night midnight noon today tomorrow
        yesterday Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February April June July August
        September October November December calendar clock soon later always never past future weekend afternoon""",
    "space": """planet star moon sun comet asteroid galaxy orbit rocket astronaut Mars Venus Jupiter Saturn Mercury
        Neptune Uranus Pluto Earth universe satellite meteor nebula spaceship cosmos lunar solar eclipse crater
        spacecraft constellation shuttle supernova alien interstellar NASA launch meteorite cosmonaut Apollo""",
    "body": """head arm leg hand foot eye ear nose mouth tooth tongue neck shoulder elbow wrist finger thumb knee
        ankle toe hair skin bone muscle heart lung liver kidney stomach brain blood chest hip chin cheek lip throat
        spine rib skull nail forehead eyebrow jaw heel nerve vein palm waist teeth feet shin belly""",
}  # fmt: skip
# What a frame says instead of naming the concept's words: the clue that decides what may follow.
CLUES = {
    "animals": ["animals", "creatures", "pets", "beasts of the zoo", "things with fur or wings"],
    "colors": ["colors", "shades of paint", "colors of the rainbow", "crayons", "hues"],
    "numbers": ["numbers", "amounts", "counting", "figures", "quantities"],
    "emotions": ["emotions", "feelings", "moods", "emotional life", "what people feel"],
    "technology": ["technology", "gadgets", "devices", "modern technology", "computing"],
    "food": ["food", "meals", "cooking", "the menu", "groceries"],
    "travel": ["travel", "tourism", "travelling", "trips", "getting around"],
    "science": ["science", "research", "the lab", "scientific work", "scientists"],
    "language": ["language", "linguistics", "grammar class", "words and speech", "languages"],
    "time": ["time", "dates", "the calendar", "clocks", "days and years"],
    "space": ["space", "astronomy", "the night sky", "outer space", "the cosmos"],
    "body": ["the body", "anatomy", "body parts", "the human body", "bodies"],
}  # fmt: skip
FRAMES = [
    "{Who} made a list about {clue}: {list}.", "Among the words about {clue} {who} knew were {list}.",
    "{Who} likes {clue}, above all {list}.", "The book about {clue} speaks of {list}.", "In the talk on {clue} we heard of {list}.",
    "The teacher asked about {clue}, and {who} said {list}.", "For {clue}, {who} thought of {list}.",
    "The first page, on {clue}, shows {list}.", "{Who} wrote {list} under {clue}.", "When it comes to {clue}, think of {list}.",
]  # fmt: skip
PEOPLE = [
    "he",
    "she",
    "they",
    "we",
    "the old man",
    "the girl",
    "the boy",
    "my friend",
    "his mother",
    "Tom",
    "Anna",
    "Sam",
]
LEADS = [
    "I know that", "They say that", "He said that", "She knew that", "It is true that", "We learned that",
    "You may think that", "As everyone knows,", "In the story,", "And so", "But", "Then", "Once more,",
]  # fmt: skip
OPENERS = set(
    [
        "A",
        "An",
        "And",
        "After",
        "All",
        "As",
        "At",
        "Before",
        "By",
        "Each",
        "Every",
        "For",
        "From",
        "He",
        "Her",
        "His",
        "If",
        "In",
        "It",
        "Its",
        "Many",
        "Most",
        "My",
        "No",
        "On",
        "Our",
        "Out",
        "She",
        "The",
        "Their",
        "There",
        "These",
        "They",
        "This",
        "To",
        "We",
        "When",
        "With",
        "You",
        "Your",
    ]
)  # first words that become lower case after a lead-in; any other first word may be a name
DETERMINERS = set(
    [
        "a",
        "an",
        "the",
        "his",
        "her",
        "their",
        "my",
        "your",
        "our",
        "its",
        "this",
        "that",
        "some",
        "of",
    ]
)
TAILS = [
    ".",
    ".",
    ".",
    ".",
    ", of course.",
    ", I think.",
    ", he said.",
    " and that was all.",
    ", as we know.",
]
STORY = [
    "{Who} {verb} the {thing} and {verb} the {thing} {where}.", "{Who} {verb} a {adj} {thing} {where}.",
    "The {thing} was {adj}, but {who} did not care.", "{Who} went {where} and {verb} the {adj} {thing}.",
    "There was a {adj} {thing} {where}.", "{Who} said that the {thing} was too {adj}.", "It was {adj}, and {who} went {where}.",
]  # fmt: skip
FILL = {
    "verb": ["opened", "closed", "found", "lost", "moved", "carried", "dropped", "wanted", "sold", "bought", "saw", "took", "left", "kept", "held"],
    "thing": ["door", "box", "chair", "table", "window", "bag", "cup", "basket", "rope", "ladder", "bench", "fence", "gate", "lamp", "coat", "hammer", "bottle"],
    "adj": ["small", "big", "old", "new", "heavy", "broken", "clean", "dirty", "plain", "good", "bad", "empty", "full", "long", "short", "strange", "nice"],
    "pause": ["really", "truly", "surely", "perhaps", "maybe", "probably", "certainly", "just", "mostly", "simply"],
    "where": ["to the house", "in the street", "by the wall", "at the corner", "near the shop", "in the room", "outside"],
}  # fmt: skip


class Generator:
    """Makes passages; the same seed and data files give the same text."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.prompts: dict[str, list[tuple[str, str]]] = {}
        self.contexts: dict[str, list[tuple[str, str]]] = {}
        for concept in sorted([*WORDS, NEUTRAL]):
            prompts = _read(DATA / "prompts" / f"{concept}.json").get("prompts", [])
            self.prompts[concept] = [(p["prompt"], p["answer"]) for p in prompts]
            facts = _read(ROOT / "scripts" / "demo_facts" / f"{concept}.json").get("facts", [])
            self.contexts[concept] = [(text, f["answer"]) for f in facts for text in f["contexts"]]
        self.words = self._own_words()

    def _own_words(self) -> dict[str, list[str]]:
        """Per concept its answers and listed words, less the words that two concepts claim (an answer claims first)."""
        answers = {c: {a.strip() for _, a in self.prompts[c] + self.contexts[c]} for c in WORDS}
        neutral = {a.strip() for _, a in self.prompts[NEUTRAL] + self.contexts[NEUTRAL]}
        pools = {c: set(WORDS[c].split()) | answers[c] for c in WORDS}
        own = {}
        for c in WORDS:
            others = set().union(*(pools[o] for o in WORDS if o != c)) | neutral
            claimed = set().union(*(answers[o] for o in WORDS if o != c)) | neutral
            own[c] = sorted(
                w for w in pools[c] if w not in (claimed if w in answers[c] else others)
            )
        return own

    def sentence(self, concept: str, lead: bool = True) -> str:
        """One sentence of the concept: a frame or a fact (neutral: a story line or a fact)."""
        rng = self.rng
        facts = self.prompts[concept] * 2 + self.contexts[concept]
        if not facts or rng.random() < (0.5 if concept == NEUTRAL else 0.3):
            return self._story() if concept == NEUTRAL else self._frame(concept)
        text, answer = rng.choice(facts)
        if concept != NEUTRAL and rng.random() < SWAP:
            answer = " " + self._word(concept, text)
        if concept != NEUTRAL and rng.random() < PAUSE:
            answer = f" {rng.choice(FILL['adj' if text.split()[-1] in DETERMINERS else 'pause'])}{answer}"
        if lead and rng.random() < 0.5:
            opener = re.match(r"\w+", text)
            lowered = text[0].lower() + text[1:] if opener and opener[0] in OPENERS else text
            text = f"{rng.choice(LEADS)} {lowered}"
        return text + answer + rng.choice(TAILS)

    def passage(self) -> str:
        """One to three sentences; half the passages stay with one concept, the others mix."""
        rng = self.rng
        names = [*WORDS, NEUTRAL, NEUTRAL]
        concept, stay = rng.choice(names), rng.random() < 0.5
        parts = []
        for i in range(rng.choice((1, 2, 2, 3))):
            if i and not stay:
                concept = rng.choice(names)
            parts.append(self.sentence(concept, lead=i > 0 or rng.random() < 0.3))
        return " ".join(parts)

    def _word(self, concept: str, text: str) -> str:
        """A word of the concept that agrees with an article at the end of the text."""
        article = text.split()[-1]
        fits = [
            w
            for w in self.words[concept]
            if article not in ("a", "an") or (w[0] in "aeiou") == (article == "an")
        ]
        return self.rng.choice(fits or self.words[concept])

    def _frame(self, concept: str) -> str:
        chosen = self.rng.sample(self.words[concept], self.rng.choice((2, 3, 3, 4)))
        clue = self.rng.choice(CLUES[concept])
        return self._fill(
            self.rng.choice(FRAMES), clue=clue, list=", ".join(chosen[:-1]) + " and " + chosen[-1]
        )

    def _story(self) -> str:
        return self._fill(self.rng.choice(STORY))

    def _fill(self, frame: str, **given: str) -> str:
        def one(match: re.Match[str]) -> str:
            name = match[1]
            if name.lower() == "who":
                who = self.rng.choice(PEOPLE)
                return who[0].upper() + who[1:] if name == "Who" else who
            return given[name] if name in given else self.rng.choice(FILL[name])

        return re.sub(r"{(\w+)}", one, frame)


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def passages(seed: int, count: int) -> list[str]:
    """`count` seeded passages."""
    generator = Generator(seed)
    return [generator.passage() for _ in range(count)]


if __name__ == "__main__":
    print("\n".join(passages(0, 40)))
