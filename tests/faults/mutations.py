"""Configs and words with something wrong in them, drawn from a seed."""

import copy

import yaml

ODD = [
    None, True, False, 0, -1, 10**30, 1.5, float("nan"), float("inf"), -float("inf"), "", " ", "x",
    "null", "-", "--", "[", "{a: 1}", "*a", "é中\u202e", "x" * 5000, [], {}, [[]], [1, "a", None],
    {"": 1}, {1: 2}, {None: {}}, "2020-99-99", "1e999", "0x", "1_000", "~", "../..", "none/x",
    {"class_path": "os.system", "init_args": {"command": "touch pwned"}},
    {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "pwned"]}},
    {"class_path": "nowhere.Nothing"}, {"class_path": 3}, {"init_args": {}}, "os.system",
]  # fmt: skip


def places(tree, above=()):
    """The path of every value in a tree of dicts and lists."""
    found = [above] if above else []
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        if isinstance(value, dict | list):
            found += places(value, (*above, key))
        else:
            found.append((*above, key))
    return found


def misspelt(word, rng):
    word = str(word)  # YAML's null may be a name
    at = rng.randrange(len(word) + 1)
    return rng.choice([word[:at] + word[at + 1 :], word[:at] + word[at - 1 : at] + word[at:],
                       word[:at] + rng.choice("aé.- :\n0") + word[at:], word.upper()])  # fmt: skip


def change_tree(tree, rng):
    """A tree with one value replaced, wrapped, moved or removed, or one key misspelt."""
    tree = copy.deepcopy(tree)
    *above, key = rng.choice(places(tree))
    parent = tree
    for step in above:
        parent = parent[step]
    kind = rng.choice(["replace", "replace", "misspell", "remove", "wrap", "move"])
    if kind == "misspell" and isinstance(parent, dict):
        parent[misspelt(key, rng)] = parent.pop(key)
    elif kind == "remove":
        del parent[key]
    elif kind == "wrap":
        parent[key] = rng.choice([[parent[key]], {"a": parent[key]}, str(parent[key])])
    elif kind == "move" and isinstance(tree, dict):
        tree[str(key)] = parent[key]
    else:
        parent[key] = copy.deepcopy(rng.choice(ODD))
    return tree


def change_text(text, rng):
    """A text with a line doubled, moved or lost, a character changed, or its end cut off."""
    lines = text.splitlines(keepends=True)
    at, kind = rng.randrange(len(lines)), rng.randrange(6)
    if kind == 0:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif kind == 1:
        lines.pop(at)
    elif kind == 2:
        lines[at] = rng.choice([" ", "\t", "- ", "  "]) + lines[at]
    elif kind == 3:
        lines[at] = lines[at].strip() + "\n"
    else:
        text = "".join(lines)
        place = rng.randrange(len(text))
        if kind == 4:
            return text[:place]
        return text[:place] + rng.choice("{}[]:,&*!|>'\"%@`#-?\t\0\x07é\n0") + text[place + 1 :]
    return "".join(lines)


def change_config(text, rng):
    """A config with one to three mistakes in it."""
    tree = yaml.safe_load(text)
    if rng.random() < 0.3:
        return change_text(text, rng)
    for _ in range(rng.randrange(1, 4)):
        tree = change_tree(tree, rng) if places(tree) else tree
    return yaml.safe_dump(tree, allow_unicode=True)
