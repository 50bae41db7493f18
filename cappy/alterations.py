def truncated(words, others, generator):
    return words[: generator.randrange(1, len(words))] if len(words) > 1 else None
def repeated(words, others, generator):
    if len(words) < 2: return None
    start = generator.randrange(len(words)); end = generator.randrange(start + 1, len(words) + 1)
    return words[:end] + words[start:end] + words[end:]
def reordered(words, others, generator):
    if len(words) < 3: return None
    if generator.random() < 0.5:
        middle = generator.randrange(1, len(words)); return words[middle:] + words[:middle]
    return generator.sample(words, len(words))
def _is_entity(word, place):
    return any(letter.isdigit() for letter in word) or (place > 0 and word[:1].isupper())
def swapped(words, others, generator):
    if len(words) < 2 or not others: return None
    place = generator.choice([i for i, word in enumerate(words) if _is_entity(word, i)] or range(len(words)))
    found = [word for i, word in enumerate(others) if _is_entity(word, i)] or others
    return [*words[:place], generator.choice(found), *words[place + 1 :]]
ALTERATIONS = {f.__name__: f for f in (truncated, repeated, reordered, swapped)}
