"""What may be wrong with the texts of a task: counted for each split, kept in the result, and said in words.

None of it is an error. A task may hold some of it and be sound; where all of it is so, its numbers say nothing, and the
sentences here are how a reader learns of it.
"""

from collections.abc import Iterable, Mapping, Sequence

from cappy.files.wording import listed
from cappy.tasks.candidates import Example
from cappy.tasks.rouge import RougeL, most_unread

# Number of examples with each fault: what is said of n of all examples of the splits that count it.
_SENTENCES = {
    'unread': (
        '{n} of {all} examples have texts most of whose letters rougeL does not read (it knows a-z and 0-9; '
        '{share} of all letters are others), so that its values say little; --rouge_tokenizer unicode reads them'
    ),
    'references_without_words': (
        '{n} of {all} examples have no reference with a word in it, so that every response has rougeL 0'
    ),
    'responses_without_words': '{n} of {all} examples have no response with a word in it, so that each has rougeL 0',
    'blank_instructions': '{n} of {all} examples have a blank instruction',
    'instructions_in_train': (
        '{n} of {all} validation instructions are in the train split too; a scorer that was trained on them is not '
        'tested by them'
    ),
    'single_candidates': '{n} of {all} validation examples have a single candidate, so that there is nothing to pick',
}
FAULTS = tuple(_SENTENCES)
COUNTED = ('examples', 'samples', 'empty_samples', 'cut_samples', 'candidates', 'letters', 'unread_letters')
_ONLY_WHERE_ALL = 'single_candidates'  # of some examples it is no fault: the samples agree


def count_faults(task: Mapping[str, Sequence[Example]], rouge: RougeL) -> dict[str, dict[str, int]]:
    """{split: the number of COUNTED, and of FAULTS the number of examples}.

    task: the examples of each split, as `candidates.read_task` gives them. Letters are those of references and
    candidates; cut samples those that the file calls so. 'instructions_in_train' needs both splits.
    """
    counts = {split: _of_texts(examples, rouge) for split, examples in task.items()}
    if 'validation' in task:
        validation = task['validation']
        counts['validation']['single_candidates'] = sum(len(example.candidates) == 1 for example in validation)
        if 'train' in task:
            known = {example.instruction for example in task['train']}
            n_known = sum(example.instruction in known for example in validation)
            counts['validation']['instructions_in_train'] = n_known
    return counts


def describe_faults(counts: Iterable[Mapping[str, int]]) -> dict[str, str]:
    """{fault: what is said of it} for those that some example has; counts: of splits or tasks, which are added up."""
    counts = list(counts)
    lines = {}
    for fault, sentence in _SENTENCES.items():
        having = [of_split for of_split in counts if fault in of_split]
        n, n_all = (sum(of_split[key] for of_split in having) for key in (fault, 'examples'))
        if n and (fault != _ONLY_WHERE_ALL or n == n_all):
            n_letters = sum(of_split['letters'] for of_split in having)
            share = sum(of_split['unread_letters'] for of_split in having) / max(n_letters, 1)
            lines[fault] = sentence.format(n=n, all=n_all, share=f'{share:.0%}')
    return lines


def describe_by_name(counts: Mapping[str, Sequence[Mapping[str, int]]]) -> list[str]:
    """One line for each fault that some have, with their names; counts: by name (of a task, say), of its splits."""
    found = {name: describe_faults(own) for name, own in counts.items()}
    lines = []
    for fault in FAULTS:
        if having := [name for name, own in found.items() if fault in own]:
            summed = describe_faults(of_split for name in having for of_split in counts[name])
            lines.append(f'{listed(having)}: {summed[fault]}')
    return lines


def _of_texts(examples, rouge):
    counts = dict.fromkeys((*COUNTED, *FAULTS[:4]), 0)
    for example in examples:
        texts = (*example.references, *example.candidates)
        letters = [rouge.unread_letters(text) for text in texts]
        counts['examples'] += 1
        counts['samples'] += len(example.samples)
        counts['empty_samples'] += sum(not sample.response.strip() for sample in example.samples)
        counts['cut_samples'] += sum(sample.was_cut for sample in example.samples)
        counts['candidates'] += len(example.candidates)
        counts['letters'] += sum(n for _, n in letters)
        counts['unread_letters'] += sum(n for n, _ in letters)
        counts['unread'] += any(most_unread(*of_text) for of_text in letters)
        counts['references_without_words'] += not any(map(_has_word, example.references))
        counts['responses_without_words'] += not any(map(_has_word, example.candidates))
        counts['blank_instructions'] += not example.instruction.strip()
    return counts


def _has_word(text):
    return any(character.isalnum() for character in text)
