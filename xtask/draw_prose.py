#!/usr/bin/env python3
"""Draws comments and messages of the Rust sources by a fixed seed, so that a reader can judge their language.

usage: xtask/draw_prose.py [--seed N] [--comments N] [--messages N] [--commit COMMIT]

A comment is a run of comment lines without code between them. A message is a string literal of at least three words,
outside of tests. The output is numbered. Each entry has a file, a line and a text.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess

TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*)|(?P<raw>b?r(?P<hashes>\#*)".*?"(?P=hashes))|(?P<string>[bc]?"(?:\\.|[^"\\])*")"""
    r"""|(?P<char>b?'(?:\\(?:u\{[^}]*\}|.)[^']*|[^'\\\n])')|(?P<newline>\n)|(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)


def git(*arguments: str) -> str:
    """Returns the output of a git command."""
    return subprocess.run(["git", *arguments], capture_output=True, check=True, text=True).stdout


def prose(source: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Returns the comments and the messages of a file, each with its line."""
    comments: list[tuple[int, str]] = []
    messages: list[tuple[int, str]] = []
    line, last_comment, code_on_line = 1, -2, False
    for token in TOKEN.finditer(source):
        text = token.group(0)
        if token.lastgroup == "newline":
            line, code_on_line = line + 1, False
            continue
        if comment := token.group("comment"):
            words = comment.lstrip("/!").strip()
            if comments and line == last_comment + 1 and not code_on_line:
                first, before = comments[-1]
                comments[-1] = (first, f"{before} {words}")
            else:
                comments.append((line, words))
            last_comment = line
        elif literal := token.group("string"):
            words = " ".join(literal.strip('bc"').replace("\\\n", " ").split())
            if len(re.findall(r"[a-z]{2,}", words)) >= 3 and " " in words:
                messages.append((line, words))
        if not text.isspace():
            code_on_line = True
        line += text.count("\n")
    return [(at, words) for at, words in comments if re.search("[A-Za-z]{2}", words)], messages


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--comments", type=int, default=300)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--commit", default="HEAD")
    arguments = parser.parse_args()
    comments, messages = [], []
    for path in git("ls-tree", "-r", "--name-only", arguments.commit).split():
        if path.endswith(".rs"):
            of_file = prose(git("show", f"{arguments.commit}:{path}"))
            comments += [(path, *comment) for comment in of_file[0]]
            if "/tests/" not in path and "/benches/" not in path:
                messages += [(path, *message) for message in of_file[1]]
    draw = random.Random(arguments.seed)
    for name, all_of_them, count in [("comments", comments, arguments.comments), ("messages", messages, arguments.messages)]:
        print(f"# {min(count, len(all_of_them))} of {len(all_of_them)} {name}")
        for number, (path, line, text) in enumerate(draw.sample(all_of_them, min(count, len(all_of_them))), 1):
            print(f"{number}. {path}:{line}: {text}")


if __name__ == "__main__":
    main()
