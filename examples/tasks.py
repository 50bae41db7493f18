"""Three small generative tasks, each a seeded program that makes any number of inputs.

    python examples/tasks.py

Writes examples/bigbench_data. `mixed_kinds` has short exact answers, `rewrite_tense` rewrites a sentence,
`facts_to_sentence` puts six facts into words and has three references. The first inputs of a task are its train split,
the next ones its validation split, and those after them train the language model whose samples are the candidates
(`make_language_model.py`): no input is in two of the three.
"""

import json
import random
from itertools import islice
from pathlib import Path

N_EXAMPLES = {'train': 160, 'validation': 80}


def words(text, separator=None):
    """The words of a text; with a separator, the phrases between."""
    return [phrase.strip() for phrase in text.split(separator)]


KINDS = {
    line.split()[0]: line.split()[1:]
    for line in """
    mammal horse goat camel otter badger rabbit donkey hedgehog beaver squirrel moose weasel sheep
    bird heron robin sparrow falcon pigeon magpie swallow stork raven pelican ostrich thrush owl
    fruit apple pear cherry plum mango apricot banana melon quince papaya lemon peach fig grape
    vegetable carrot onion leek spinach turnip cabbage celery parsnip lettuce radish broccoli
    flower tulip daisy rose orchid lily violet poppy dahlia daffodil lavender jasmine marigold peony
    tool hammer saw chisel pliers wrench drill screwdriver axe shovel rake crowbar sickle file
    instrument violin flute trumpet cello harp drum banjo clarinet oboe piano guitar trombone
    garment coat scarf glove skirt sock jacket sweater shirt trousers apron vest dress mitten
    vehicle tram bicycle lorry ferry canoe bus tractor scooter airship van taxi train yacht
    furniture sofa table wardrobe bench stool desk cupboard armchair shelf bookcase cradle sideboard
    metal iron copper silver tin zinc nickel gold lead bronze steel titanium cobalt chromium
    fabric cotton silk linen wool velvet denim satin felt flannel lace canvas tweed nylon
    drink tea coffee cocoa lemonade cider milk beer wine juice water brandy cola espresso
    sport tennis rowing hockey fencing rugby archery judo golf cricket boxing cycling skiing
    job baker nurse plumber teacher lawyer carpenter sailor tailor pilot farmer dentist butcher
    building castle barn chapel library tower cottage temple palace hospital school factory museum
    """.strip().splitlines()
}
FIRST_NAMES = words(
    """
    Ada Bela Carla Dario Edda Farid Greta Hugo Ines Jonas Kira Lorenz Mira Nadir Olga Pavel Quinn
    Rosa Samir Tilda Ugo Vera Wanda Xenia Yusuf Zora Alma Boris Celia Dunja Emil Fiona Gideon Hanna
    Igor Jutta Karim Leona
    """
)
LAST_NAMES = words(
    """
    Brandt Castel Dorn Eklund Farkas Goss Haddad Ivers Jansen Keller Lindt Moreau Novak Ortiz Petrov
    Quist Rossi Sandor Tamm Ulrich Vogel Weiss Yilmaz Zeman Archer Bloom Crane Dalton Ember Frost
    """
)
# present, past, base form
VERBS = [
    forms.split('/')
    for forms in words(
        """
        paints/painted/paint sells/sold/sell finds/found/find hides/hid/hide draws/drew/draw
        buys/bought/buy mends/mended/mend carries/carried/carry brings/brought/bring
        washes/washed/wash loses/lost/lose takes/took/take packs/packed/pack steals/stole/steal
        breaks/broke/break holds/held/hold wraps/wrapped/wrap keeps/kept/keep sends/sent/send
        throws/threw/throw chooses/chose/choose lifts/lifted/lift borrows/borrowed/borrow
        drops/dropped/drop
        """
    )
]
THINGS = words(
    """
    boat lamp drum kite basket clock mirror ladder bottle carpet violin hat key letter chair teapot
    stone map bell pillow bucket candle photo coin
    """
)
NUMBERS = words(
    """
    two three four five six seven eight nine ten twelve
    """
)
PLACES = words(
    """
    harbour market library station bridge castle museum bakery lake garage school theatre farm park
    mill church tower garden hotel chapel
    """
)
TIMES = words(
    """
    Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, a rainy day, a holiday,
    the first of May, the last day of June, a winter evening
    """,
    ',',
)
TOWNS = words(
    """
    Arles Bergen Cadiz Delft Essen Faro Ghent Hilo Izmir Jena Kotor Lund Malaga Nantes Oulu Porto
    Quito Riga Siena Turku Udine Varna Wells York Zadar
    """
)
PETS = words(
    """
    cat dog parrot tortoise rabbit goldfish hamster pony goose lizard
    """
)
COLOURS = words(
    """
    black white brown grey spotted golden striped young lazy noisy
    """
)
HOBBIES = words(
    """
    plays chess, collects stamps, grows roses, sings in a choir, builds model ships, bakes bread,
    climbs mountains, paints portraits, keeps bees, repairs radios, writes poems, plays the cello,
    studies maps, swims in the sea
    """,
    ',',
)


def mixed_kinds(rng):
    """Five words of two kinds; the kinds in alphabetical order."""
    kinds = sorted(rng.sample(sorted(KINDS), 2))
    n_first = rng.randint(1, 4)
    things = rng.sample(KINDS[kinds[0]], n_first) + rng.sample(KINDS[kinds[1]], 5 - n_first)
    rng.shuffle(things)
    question = 'Which two kinds of things are mixed here?'
    return f'{question}\nThings: {", ".join(things)}\nAnswer:', [', '.join(kinds)]


def rewrite_tense(rng):
    """Two clauses, to be rewritten from the present into the past or the future."""
    tense = rng.choice(('past', 'future'))
    names, verbs = rng.sample(FIRST_NAMES, 2), rng.sample(VERBS, 2)
    things = [f'{rng.choice(NUMBERS)} {thing}s' for thing in rng.sample(THINGS, 2)]
    place, time = rng.choice(PLACES), rng.choice(TIMES)

    def sentence(form):
        first, second = form(verbs[0]), form(verbs[1])
        return f'{names[0]} {first} {things[0]} at the {place} and {names[1]} {second} {things[1]} on {time}.'

    rewritten = sentence(lambda verb: verb[1] if tense == 'past' else f'will {verb[2]}')
    request = f'Rewrite the sentence in the {tense} tense.'
    return f'{request}\nSentence: {sentence(lambda verb: verb[0])}\nAnswer:', [rewritten]


def person(rng):
    """Six facts about a person, {name of the fact: fact}."""
    return {
        'name': f'{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}',
        'age': str(rng.randrange(20, 80)),
        'job': rng.choice(KINDS['job']),
        'town': rng.choice(TOWNS),
        'pet': f'{rng.choice(COLOURS)} {rng.choice(PETS)}',
        'hobby': rng.choice(HOBBIES),
    }


def wordings(facts):
    """Three sentences with all facts of a person."""
    name, age, job, town, pet, hobby = facts.values()
    return [
        f'{name} is a {age} year old {job} from {town} who has a {pet} and {hobby}.',
        f'{name}, a {job} of {age} years, lives in {town} with a {pet} and {hobby}.',
        f'The {job} {name} from {town}, {age} years old, {hobby} and owns a {pet}.',
    ]


def facts_to_sentence(rng):
    """Six facts about a person in one sentence, in three wordings."""
    facts = person(rng)
    listed = [f'{name} = {fact}' for name, fact in facts.items()]
    rng.shuffle(listed)
    request = 'Put these facts into one sentence.'
    return f'{request}\nFacts: {"; ".join(listed)}\nAnswer:', wordings(facts)


TASKS = {task.__name__: task for task in (mixed_kinds, rewrite_tense, facts_to_sentence)}


def inputs(task, seed=0):
    """Yields (instruction, references) without end; no instruction comes twice."""
    make, rng, seen = TASKS[task], random.Random(f'{task} {seed}'), set()
    while True:
        instruction, references = make(rng)
        if instruction not in seen:
            seen.add(instruction)
            yield instruction, references


def split_examples(task, split):
    """The examples of a split, one dict per line of its file in `bigbench_data`."""
    start = 0 if split == 'train' else N_EXAMPLES['train']
    return [
        {
            'dataset': task,
            'example_idx': number,
            'instruction': instruction,
            'references': references,
        }
        for number, (instruction, references) in enumerate(islice(inputs(task), start, start + N_EXAMPLES[split]))
    ]


def language_model_inputs(task, n_inputs):
    """The inputs that train the language model: those after both splits."""
    start = sum(N_EXAMPLES.values())
    return list(islice(inputs(task), start, start + n_inputs))


def write_data(folder):
    """Write the folder `bigbench_data`: one file per task and split, and the list of tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'subset_names.json').write_text(json.dumps(list(TASKS)))
    for task in TASKS:
        for split in N_EXAMPLES:
            lines = [json.dumps(example) + '\n' for example in split_examples(task, split)]
            (folder / f'{task}_{split}.jsonl').write_text(''.join(lines))


if __name__ == '__main__':
    write_data(Path(__file__).parent / 'bigbench_data')
