"""What a scorer is trained for: each label (the paper's), or what tells the candidates of one instruction apart.

A pick depends on nothing but the differences within an instruction, while most of the squared error on labels may be
about how hard an instruction is. 'centred' takes that out of the labels. 'listwise' takes it out of the loss: there
only differences of scores count, and all candidates of an instruction are in one update.

P pairs of an update; group: int [P], the instruction of each pair, by any number.
"""

import numpy as np

OBJECTIVES = ('absolute', 'centred', 'listwise')
TEMPERATURE = 0.1  # of the listwise loss: what is that much below the best has 1 / e of its weight


def centred(labels, group):
    """Labels minus the mean of their group, plus 0.5; float64 [P], from -0.5 to 1.5 for labels from 0 to 1."""
    labels = np.asarray(labels, np.float64)
    _, place, counts = np.unique(group, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=labels) / counts
    return labels - means[place] + 0.5


def listwise(scores, labels, group):
    """(loss, its gradient by the scores, float64 [P]).

    The loss of a group is the cross-entropy between the softmax of its labels and that of its scores, both divided by
    TEMPERATURE, times TEMPERATURE; the loss is the mean over the pairs of their groups' losses (ListNet's, Cao et al.,
    ICML 2007). A pair that is alone in its group has neither loss nor gradient.
    """
    _, place, counts = np.unique(group, return_inverse=True, return_counts=True)
    log_wanted, log_found = (_log_softmax(values, place, len(counts)) for values in (labels, scores))
    wanted, weight = np.exp(log_wanted), counts[place] / len(place)
    loss = -TEMPERATURE * np.sum(weight * wanted * log_found)
    return float(loss), weight * (np.exp(log_found) - wanted)


def targets(scores, gradient):
    """Labels [P] whose squared error, the mean over the pairs, has this gradient by the scores.

    So one program of gradients serves every objective: 2 / P * (score - target) is the gradient.
    """
    return np.asarray(scores, np.float64) - 0.5 * len(gradient) * gradient


def whole_groups(group, n_updates, n_pairs, seed):
    """The pairs of each update: whole groups in an order drawn with the seed, n_pairs on average.

    An update has one group at least; where none is larger than that, all updates together have n_updates * n_pairs
    pairs to half a group. When all groups were taken, they are taken again in a new order. Groups of a single pair,
    which a listwise loss does not move, are left out, unless there are no others.
    Returns a list of n_updates int arrays, places in `group`.
    """
    order = np.argsort(group, kind='stable')
    members = np.split(order, np.flatnonzero(np.diff(np.asarray(group)[order])) + 1)
    members = [pairs for pairs in members if len(pairs) > 1] or members
    generator = np.random.default_rng(seed)
    updates, waiting, n_missing = [], [], 0
    for _ in range(n_updates):
        n_missing += n_pairs
        chosen = []
        while True:
            waiting = waiting or generator.permutation(len(members)).tolist()
            if chosen and len(members[waiting[-1]]) > 2 * n_missing:
                break
            chosen.append(members[waiting.pop()])
            n_missing -= len(chosen[-1])
        updates.append(np.concatenate(chosen))
    return updates


def _log_softmax(values, place, n_groups):
    scaled = np.asarray(values, np.float64) / TEMPERATURE
    highest = np.full(n_groups, -np.inf)
    np.maximum.at(highest, place, scaled)
    shifted = scaled - highest[place]
    return shifted - np.log(np.bincount(place, weights=np.exp(shifted), minlength=n_groups))[place]
