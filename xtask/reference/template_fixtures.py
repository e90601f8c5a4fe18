"""Writes templates with the text that Transformers renders: `idefics-template/tests/reference.json`.

    python xtask/reference/template_fixtures.py [--random N] [--seed N] [--out FILE]

There are hand-written templates for every statement, filter, test, method and operator, also with unusual arguments, and N
random ones from a grammar. The result of each is its text, or null if the reference raises an exception. Files larger than
the committed one can be compared with `cargo run -p idefics-template --example compare FILE`.
"""

import argparse
import copy
import datetime
import itertools
import json
import pathlib
import random
import re
import signal

from template_models import CHATS, MODELS
from transformers.utils import chat_template_utils

NOW = 1722945600  # 2024-08-06 12:00:00
CONTEXT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is <this>?"}], "name": "Ada"},
        {"role": "assistant", "content": "A cat & a dog.", "tool_calls": None},
        {"role": "user", "content": ""},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": [1, 2.5], "a": {}}}}],
    "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True,
    "s": "Hello  there, Wörld\nsecond line\tend", "w": "  padded\n", "e": "", "u": "ÄÖß ǆ 'q\"", "h": "<b>bold</b> & 'x'",
    "n": 7, "z": 0, "neg": -3, "f": 2.5, "g": 1e20, "t": True, "nil": None,
    "xs": [3, 1, 2], "ys": ["b", "A", "c", "a"], "es": [], "mix": [1, "a", None, 2.0, True],
    "d": {"b": 1, "a": [1, 2], "C": None}, "ed": {}, "rows": [
        {"k": "x", "v": 2, "o": {"p": 1}}, {"k": "Y", "v": 1, "o": {"p": 2}}, {"k": "x", "v": 3}, {"v": None, "k": "y"}],
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=NOW)


chat_template_utils.datetime = Clock


class Expired(Exception):
    pass


def expire(*_):
    raise Expired


signal.signal(signal.SIGALRM, expire)


def render(source):
    """The rendered text; None for an error; () if the result is unusable or took too long."""
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        # The context is copied, because the filter `indent` appends a line break to lists in place.
        text = chat_template_utils._cached_compile_jinja_template(source).render(**copy.deepcopy(CONTEXT))
    except (Expired, MemoryError):
        return ()
    except BaseException:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    # Addresses of objects differ between runs, and idefics-template prints generators differently.
    if re.search(r"0x[0-9a-f]{6,}|<(function|class|built-in|bound)|generator|g-e-n-e-r", text, re.IGNORECASE) or len(text) > 5000:
        return ()
    # idefics-template rejects complex numbers, as its README documents.
    if re.search(r"\dj\)", text):
        return ()
    try:
        text.encode()
    except UnicodeEncodeError:
        return ()
    return text


VALUES = ["s", "w", "e", "u", "h", "n", "z", "neg", "f", "g", "t", "nil", "xs", "ys", "es", "mix", "d", "ed", "rows",
          "missing", "messages", "range(4)", "(1, 'a')", "d.items()", "h|safe", "xs|map('string')", "'a,b,,c'", "'3.7'",
          "' -12 '", "'0x1f'", "10 ** 20", "namespace(a=1)", "1.5e-7", "'%s|%5d'", "123456789", "['x', ['y', [1]]]"]

FILTERS = {
    "abs": [""], "attr": ["('upper')", "('a')", "('k')"],
    "batch": ["(2)", "(3, 0)", "(linecount=2, fill_with='x')", "(0)", "(-1)", "('a')"],
    "capitalize": [""], "center": ["", "(20)", "(width=9)", "(-1)", "('a')"], "count": [""],
    "d": ["('x')", "('x', true)", "()"], "default": ["(1)", "(default_value=2, boolean=true)"],
    "dictsort": ["", "(true)", "(by='value')", "(reverse=true)", "(by='x')"], "e": [""], "escape": [""],
    "filesizeformat": ["", "(true)"], "first": [""], "float": ["", "(1.5)", "(default='x')"], "forceescape": [""],
    "format": ["", "(1)", "('a', 2)", "(a=1)"],
    "groupby": ["('k')", "('v')", "('o.p', default=0)", "('k', case_sensitive=true)", "(0)"],
    "indent": ["", "(2)", "(2, true)", "(2, true, true)", "('> ')", "(width=1, blank=true)", "(-1)"],
    "int": ["", "(5)", "(base=16)", "(0, 0)", "(default='x')"], "items": [""],
    "join": ["", "(', ')", "('-', 'k')", "(attribute='v')", "(1)"], "last": [""], "length": [""], "list": [""],
    "lower": [""], "map": ["('upper')|list", "(attribute='k')|list", "(attribute='o.p', default=0)|list", "('int', 3)|list",
                          "()|list", "('nope')|list", "(attribute=0)|list", "('default', 'x')|join('/')"],
    "max": ["", "(attribute='v')", "(true)", "(case_sensitive=true)"], "min": ["", "(attribute='v')", "(true)"],
    "pprint": [""], "reject": ["|list", "('odd')|list", "('none')|list", "('nope')|list", "('in', [1, 'a'])|list"],
    "rejectattr": ["('v')|list", "('v', 'none')|list", "('k', 'equalto', 'x')|list", "()|list"],
    "replace": ["('a', 'b')", "('l', '<', 1)", "('', '-')", "(old=1, new=2)", "('e', 'x', count=0)", "(1, 2, 'x')"],
    "reverse": ["", "|list"], "round": ["", "(1)", "(-1)", "(1, 'ceil')", "(0, 'floor')", "(method='x')", "(-2, 'floor')"],
    "safe": ["", "~'<'", "+'<'"], "select": ["|list", "('number')|list", "('gt', 1)|list", "('string')|join", "|first"],
    "selectattr": ["('v')|list", "('v', 'gt', 1)|list", "('o', 'defined')|list", "('k', 'eq', 'x')|map(attribute='v')|list"],
    "slice": ["(2)|list", "(3, 'x')|list", "(0)|list", "(slices=2)|list", "(-1)|list"],
    "sort": ["", "(true)", "(case_sensitive=true)", "(attribute='v')", "(attribute='k,v')", "(reverse=true, attribute='k')"],
    "string": [""], "striptags": [""], "sum": ["", "(start=10)", "(attribute='v')", "('v')", "(start='')", "(start=[])"],
    "title": [""], "tojson": ["", "(indent=2)", "(ensure_ascii=true)", "(sort_keys=true)", "(separators=(',', ':'))",
                              "(indent='\\t')", "(true, 1)", "(indent=0)", "(indent=-1)", "(bogus=1)", "(separators='ab')"],
    "trim": ["", "('H ')", "(chars='<')", "(none)", "(1)"],
    "truncate": ["", "(5)", "(12, true)", "(10, false, '…')", "(9, leeway=0)", "(1)", "(5, end='')"],
    "unique": ["|list", "(true)|list", "(attribute='k')|map(attribute='v')|list", "(case_sensitive=true)|list"], "upper": [""],
    "urlencode": [""], "urlize": ["", "(10)", "(nofollow=true, target='_x')"], "wordcount": [""],
    "wordwrap": ["", "(5)", "(7, false)", "(7, true, '|')", "(10, break_on_hyphens=false)", "(0)"],
    "xmlattr": ["", "(false)"], "nosuch": [""],
}
TESTS = ["odd", "even", "divisibleby 3", "divisibleby(2)", "defined", "undefined", "filter", "test", "none", "boolean", "false",
         "true", "integer", "float", "lower", "upper", "string", "mapping", "number", "sequence", "iterable", "callable",
         "sameas none", "sameas(7)", "escaped", "in xs", "in('abc')", "eq 7", "== 7", "ne 7", "equalto('a')", "gt 2",
         "greaterthan 2", "ge 7", "lt 8", "lessthan 2", "le 7", "not none", "not in [1, 7]", "nosuch", "!= 1"]
TEXT_METHODS = """capitalize() casefold() center(30) center(30,'*') center(3,'ab') count('e') count('') count('l',3) count('l',1,4)
endswith('end') endswith(('x','d')) endswith('lo',0,5) expandtabs() expandtabs(4) expandtabs(tabsize=0) find('e') find('e',5)
find('zz') find('',3) find('l',-9,-1) format() index('e') index('zz') isalnum() isalpha() isascii() isdecimal() isdigit()
isidentifier() islower() isnumeric() isprintable() isspace() istitle() isupper() join(ys) join(xs) join('abc') join(d) ljust(30)
ljust(40,'.') lower() lstrip() lstrip('H') partition(' ') partition('zz') partition('') removeprefix('Hel') removesuffix('end')
replace('l','L') replace('l','L',1) replace('','-') replace('l','L',count=1) rfind('e') rfind('') rindex('e') rjust(40) rjust(40,'é')
rpartition(' ') rpartition('zz') rsplit() rsplit(' ',1) rsplit(maxsplit=1) rsplit(None,1) rstrip() rstrip('d') split() split(' ')
split(',') split(None,1) split(' ',1) split(maxsplit=2) split(sep='e',maxsplit=1) split('') splitlines() splitlines(true)
splitlines(keepends=true) startswith('Hello') startswith(('x','He')) startswith('ll',2) startswith(1) strip() strip('Hd') swapcase()
title() translate({72:'J',101:none}) translate('H'.maketrans('He','Jo')) upper() zfill(40) zfill(3) zfill(width=3) nosuch()
upper(1) split(1,2,3)""".split()
LIST_METHODS = "append(1) clear() copy() count(1) count('a') extend([1]) index(1) index('zz') index(1,1) insert(0,1) pop() remove(1) reverse() sort() index".split()
DICT_METHODS = ("clear() copy() fromkeys([1,2]) get('a') get('zz') get('zz',5) get(key='a') items() keys() pop('a') popitem() setdefault('a') "
                "update({}) values() get([]) get items|length keys()|list values()|list keys()|sort items()|first").split()
NUMBER_METHODS = "bit_length() is_integer() as_integer_ratio() real imag conjugate() hex() bit_count() numerator denominator".split()
OPERANDS = ["7", "-3", "0", "2.5", "-0.0", "'ab'", "'%s'", "[1, 2]", "(1,)", "{'a': 1}", "true", "none", "missing", "10**20", "''", "h|safe", "'1'", "[]"]
PRINTF = ["'%s' % 'a'", "'%s' % (1,)", "'%s %s' % ('a', [1])", "'%d' % 3.9", "'%d' % 'x'", "'%5d|%-5d|%05d' % (1, 2, 3)", "'%+d % d' % (1, 2)",
          "'%x %X %o %#x %#o' % (255, 255, 8, 255, 8)", "'%e %E' % (12345.678, 0.00012)", "'%f %.2f %.0f %#.0f' % (1.5, 2.675, 2.5, 3)",
          "'%g %g %g %G' % (1e10, 0.0001, 123456789.0, 1e-10)", "'%r %a' % ('é', 'é')", "'%c%c' % (65, 'b')", "'%%'", "'%' % 1", "'%s' % ()",
          "'%s' % (1, 2)", "'a' % 1", "'a' % []", "'a' % {}", "'a' % 'b'", "'%(a)s %(b)05.1f' % {'a': 1, 'b': 2.25}", "'%(a)s' % 1", "'%(z)s' % {}",
          "'%*d|%-*d' % (5, 1, 4, 2)", "'%.*f' % (2, 1.005)", "'%.3s' % 'abcdef'", "'%10.2s|' % 'abc'", "'%5s|%-5s|' % ('é', 'ab')", "'%i%u' % (1, 2)",
          "'%z' % 1", "'%s' % missing", "'%d' % missing", "'%s' % none", "'%s' % h|safe", "('%s'|safe) % '<'", "'%08.3f' % -3.14159", "'%+.1e' % 0",
          "'%#g' % 1.0", "'%5%|'", "'%ld' % 5", "'%.0e' % 15", "'%d' % 10**25", "'%x' % -255", "'%.5d' % 42", "'%s' % d", "'%s%s' % d", "'%c' % 'ab'",
          "'%g' % 1e400", "'%f' % (1e300*1e10)", "'%d' % true", "'%s' % true"]
FORMAT = ["'{} {}'.format(1, 'a')", "'{0}{1}{0}'.format('x', 'y')", "'{a}'.format(a=1)", "'{}'.format()", "'{a}'.format()", "'{0.real}'.format(5)",
          "'{0[a]} {0[C]}'.format(d)", "'{m[0][role]}'.format(m=messages)", "'{0.nosuch}'.format(1)", "'{0.__class__}'.format(1)", "'{!r} {!s} {!a}'.format('é', 'é', 'é')",
          "'{:>5}|{:<5}|{:^5}|{:*^6}'.format(1, 2, 3, 'a')", "'{:05d} {:+d} {: d}'.format(3, 4, 5)", "'{:,} {:_}'.format(1234567, 1234567)", "'{:,.2f}'.format(1234567.891)",
          "'{:b} {:o} {:x} {:X} {:#x} {:#b}'.format(5, 8, 255, 255, 255, 5)", "'{:c}'.format(65)", "'{:e} {:.2e} {:E}'.format(1234.5, 1234.5, 0.1)",
          "'{:g} {:.3g} {:G}'.format(1e10, 1234.5, 1e-10)", "'{:%} {:.1%}'.format(0.5, 0.123)", "'{:.3}'.format('abcdef')", "'{:.3}'.format(3.14159)", "'{:.3}'.format(1234567.0)",
          "'{:10.3f}|'.format(3.14159)", "'{:<10}|'.format(3.5)", "'{:=+8d}'.format(5)", "'{:08.2f}'.format(-3.14159)", "'{:s}'.format(1)", "'{:d}'.format('a')", "'{:d}'.format(1.5)",
          "'{:{}}'.format('a', 5)", "'{:{w}.{p}f}'.format(2.5, w=8, p=3)", "'{{}} {{{}}}'.format(1)", "'{'.format()", "'}'.format()", "'{0} {}'.format(1, 2)", "'{} {0}'.format(1, 2)",
          "'{!x}'.format(1)", "'{:5}'.format([1])", "'{}'.format([1, 'a'])", "'{:>8}'.format(true)", "'{:5}'.format(none)", "'{a.b}'.format(a={'b': 1})", "'{a}'.format_map({'a': 1})",
          "'{a}'.format_map({})", "'{}'.format(missing)", "'{:#.3g}'.format(1.0)", "'{:z.1f}'.format(-0.01)", "'{:010,}'.format(1234)", "'{:0>5}'.format('a')", "'{:05}'.format('a')",
          "'{:n}'.format(1234)", "'{:.0f} {:.1f}'.format(2.5, 0.25)", "'{:}'.format(1e16)", "'{:.10}'.format(0.1)", "'{:x<5}'.format(2.0)", "'{: .3}'.format(2.0)", "'{:.2}'.format(100.0)",
          "('{}'|safe).format('<')", "'{:,}'.format('a')", "'{:+}'.format('a')", "'{:.2d}'.format(1)", "'{:_x}'.format(65536)", "'{:,x}'.format(1)", "'{0[0]}'.format('ab')", "'{0[z]}'.format({})",
          "'{:Q}'.format(1)", "'{:5.}'.format(1.0)", "'{0'.format(1)", "'{0[}'.format(1)", "'{.real}'.format(1)", "'{:é^5}'.format('x')", "'{:1000000}'.format(1)|length"]
STATEMENTS = [l for l in r"""
{% for x in xs %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}
{% for x in xs %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}
{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }}{{ loop.cycle('a', 'b') }}{% endfor %}
{% for x in es %}{{ x }}{% else %}none{% endfor %}
{% for x in xs if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% else %}no{% endfor %}
{% for x in xs if x > 9 %}a{% else %}no{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}
{% for a, (b, c) in [(1, (2, 3))] %}{{ a + b + c }}{% endfor %}
{% for a, b in xs %}{% endfor %}
{% for x in d %}{{ x }}{% endfor %}
{% for c in 'héy' %}[{{ c }}]{% endfor %}
{% for x in n %}{% endfor %}
{% for x in missing %}a{% else %}b{% endfor %}
{% for x in xs %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}
{% for x in xs %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in xs %}{% break %}{% else %}else{% endfor %}
{% for x in xs %}{% continue %}{% else %}else{% endfor %}
{% for x in [1] recursive %}{% endfor %}
{% for x in [[1, [2]], [3]] recursive %}{% if x is iterable %}<{{ loop(x) }}>{% else %}{{ x }}d{{ loop.depth }}{% endif %}{% endfor %}
{% for x in xs %}{{ loop(x) }}{% endfor %}
{% for x in xs %}{% for y in ys %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}
{% for x in xs %}{% set y = x %}{% endfor %}{{ y is defined }}
{% set y = 0 %}{% for x in xs %}{% set y = y + x %}{{ y }}{% endfor %}{{ y }}
{% set ns = namespace(y=0) %}{% for x in xs %}{% set ns.y = ns.y + x %}{% endfor %}{{ ns.y }}{{ ns }}
{% set ns = namespace(d, z=1) %}{{ ns.b }}{{ ns.z }}{{ ns.q is defined }}{{ ns['b'] }}
{% set ns = namespace() %}{% set ns._x = 1 %}
{% set ns = namespace(_x=1) %}
{% set d.x = 1 %}
{% set x.y = 1 %}
{% set loop = 1 %}{{ loop }}
{% for x in xs %}{% set loop = 1 %}{% endfor %}
{% for loop in xs %}{{ loop }}{% endfor %}
{% for x in xs %}{% else %}{{ loop }}{% endfor %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% set a = 1, %}{{ a }}
{% set a, b = 1 %}
{% set a, b = [1, 2, 3] %}
{% set (a, b) = 'xy' %}{{ b }}{{ a }}
{% set x %}  block {{ n }} {% endset %}[{{ x }}]
{% set x | upper | trim %}  block {{ n }} {% endset %}[{{ x }}]
{% set x | replace('a', 'b') %}aa{% endset %}{{ x }}
{% set true = 1 %}
{% if n == 7 %}a{% elif n %}b{% else %}c{% endif %}
{% if z %}a{% elif n == 7 %}b{% else %}c{% endif %}
{% if z %}a{% elif nil %}b{% else %}c{% endif %}
{% if missing %}a{% endif %}
{% if 1, %}a{% endif %}
{% if n > 3 and n < 9 %}{% set q = 5 %}{% endif %}{{ q }}
{% with a = 1, b = n %}{{ a + b }}{% endwith %}{{ a is defined }}
{% with %}{% set a = 1 %}{{ a }}{% endwith %}{{ a }}
{% with n = 1, b = n %}{{ n }}{{ b }}{% endwith %}
{% with a, b = 1, 2 %}{% endwith %}
{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=5) }}{{ m() }}{{ m(b=1, a=2) }}
{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{% endmacro %}{{ m(x=2) }}
{% macro m(a) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, z=4) }}
{% macro m(a=n, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m() }}{{ m(1) }}
{% macro m(a, b=1, c) %}{% endmacro %}
{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}body{{ n }}{% endcall %}
{% macro m() %}{{ caller(1, b=2) }}{% endmacro %}{% call(a, b=0) m() %}{{ a }}{{ b }}{% endcall %}
{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}
{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}
{% macro m() %}x{% endmacro %}{% call m() %}{% endcall %}
{% macro m(caller) %}{{ caller() }}{% endmacro %}{% call m() %}{% endcall %}
{% macro m(caller=none) %}{{ caller }}{% endmacro %}{{ m() }}
{% macro m(x) %}{% if x > 0 %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(5) }}
{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(5) }}
{% macro m(a, b) %}{% endmacro %}{{ m }}{{ m.name }}{{ m.arguments }}{{ m.catch_kwargs }}{{ m.catch_varargs }}{{ m.caller }}
{% macro m() %}{{ q }}{% endmacro %}{% set q = 1 %}{{ m() }}
{% macro m() %}{% set q = 1 %}{% endmacro %}{{ m() }}{{ q }}
{% macro m() %}{{ n }}{% endmacro %}{% set n = 1 %}{{ m() }}
{% for x in xs %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}
{% macro m(x) %}<{{ x }}>{% endmacro %}{{ xs|map('string')|map('upper')|join }}{{ m(m(1)) }}
{% call 1 %}{% endcall %}
{% filter upper %}abc {{ s }}{% endfilter %}
{% filter replace('a', 'b')|upper %}aaa{% endfilter %}
{% filter nosuch %}{% endfilter %}
{% raw %}{{ x }}{% for %}{% endraw %}
a {%- raw -%} {{ x }} {%- endraw -%} b
{% raw %}
x
{% endraw %}
y
{# comment #}a{#- c -#} b {#+ c #}
{# unclosed
{% generation %}abc{{ n }}{% endgeneration %}!
a {%- generation -%} abc {%- endgeneration -%} b
{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %};{% endfor %}
{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q }}
{% for x in xs %}{% generation %}{% break %}{% endgeneration %}{% endfor %}
{% block a %}x{{ n }}{% endblock %}
{% block a %}1{% endblock a %}{{ self.a() }}
{% block a %}{{ super() }}{% endblock %}
{% block a %}{% endblock %}{% block a %}{% endblock %}
{% block a required %}{% endblock %}
{% block a required %}x{% endblock %}
{% set q = 1 %}{% block a %}{{ q }}{% endblock %}
{% for x in xs %}{% block a %}{{ x }}{% endblock %}{% endfor %}
{% for x in xs %}{% block a scoped %}{{ x }}{% endblock %}{% endfor %}
{% include 'x' %}
{% include 'x' ignore missing %}
{% if false %}{% include 'x' %}{% endif %}ok
{% import 'x' as y %}
{% from 'x' import y %}
{% from 'x' import y as z, q with context %}
{% extends 'x' %}
{% if z %}{% extends 'x' %}{% endif %}ok
{% autoescape true %}{{ h }}{{ h|safe }}{{ '<' ~ h|safe }}{{ ['<']|join('&') }}{% endautoescape %}{{ h }}
{% autoescape false %}{{ h }}{% endautoescape %}
{% autoescape true %}{% set x %}<{{ h }}{% endset %}{{ x }}{% macro m() %}<{{ h }}{% endmacro %}{{ m() }}{% endautoescape %}
{% do 1 %}
{% print n, s %}
{% print %}
{% debug %}
{% trans %}x{% endtrans %}
{% nosuch %}
{% endfor %}
{% for x in xs %}
{% if %}{% endif %}
{{ }}
{{ n
{{ n }
{{ (n }}
{{ n) }}
{{ [1, 2 }}
{{ {'a': 1} }}{{ {'a': 1}.a }}{{ {} }}{{ {'a': {'b': 1}}.a.b }}
{{ n }}{{- s -}} x
  {% if true %}  
 a
  {%+ if true %}
b
  {% endif +%}
c
 {% endif %}
 {{ n }}  
{%- if true -%}   x   {%- endif -%}   y
{{ '\n\t\x41\u00e9\\\'\"\q\101' }}
{{ "it's" }}{{ 'a' 'b' "c" }}
{{ 'unterminated }}
{{ 1_000 }}{{ 0x1F }}{{ 0b11 }}{{ 0o17 }}{{ 1e3 }}{{ 1.5e-3 }}{{ 2. }}
{{ 1.5 }}{{ 1_0.5_0 }}{{ 1e5 }}{{ 00 }}
{{ 007 }}
{{ xs.0 }}{{ xs.1.real }}{{ d.a.0 }}{{ d.a[1] }}
{{ xs[-1] }}{{ xs[9] }}{{ xs[9].a }}
{{ s[0] }}{{ s[-1] }}{{ s[99] }}{{ s['upper']() }}
{{ xs[1:] }}{{ xs[:1] }}{{ xs[::2] }}{{ xs[::-1] }}{{ xs[-2:] }}{{ xs[5:1:-1] }}{{ xs[:] }}
{{ s[1:4] }}{{ s[::-1] }}{{ s[-3:] }}{{ s[2:-2:3] }}{{ u[1:3] }}
{{ xs[::0] }}
{{ xs['a':] }}
{{ missing[1:] }}
{{ d[1:] }}
{{ range(10)[2:8:2] }}{{ range(10)[3] }}{{ range(3) }}{{ range(5)|list }}{{ range(5, 1, -2)|list }}{{ range(0) }}
{{ range(100001) }}
{{ range(1, 2, 0) }}
{{ range('a') }}
{{ missing }}{{ missing is defined }}
{{ missing.a }}
{{ d.zz }}{{ d.zz.yy }}
{{ missing + 1 }}
{{ missing == missing2 }}{{ missing == none }}{{ [missing] }}{{ missing|length }}{{ missing ~ 'x' }}
{{ missing() }}
{{ nil.x }}
{{ nil.x.y }}
{{ n() }}
{{ s.upper }}
{{ d.items }}
{{ d.b }}{{ d['b'] }}{{ d.keys()|list }}{{ d.get('b') }}{{ d.clear }}
{{ d.clear() }}
{{ s.__class__ }}{{ s.__class__.__mro__ }}
{{ s.__class__ is defined }}{{ xs.append }}{{ xs.append is defined }}
{{ xs.append(1) }}
{{ s|attr('__class__') }}
{{ 1 if true }}{{ 1 if false }}{{ 1 if false else 2 }}{{ 1 if n else 2 if z else 3 }}
{{ (1 if false).x }}
{{ not n }}{{ not not n }}{{ n and s }}{{ z or s }}{{ z and n or 3 }}
{{ 1 < 2 < 3 }}{{ 1 < 2 > 3 }}{{ 1 == 1.0 == true }}{{ 3 > 2 != 1 }}
{{ 'a' in 'abc' }}{{ 1 in xs }}{{ 'b' in d }}{{ 'b' not in d }}{{ 9 not in xs }}{{ 1 in [true] }}
{{ 1 in 'a' }}
{{ 1 in n }}
{{ [] in d }}
{{ -2 ** 2 }}{{ 2 ** -1 }}{{ 2 ** 3 ** 2 }}{{ 2 ** 0.5 }}{{ 10 ** 30 }}{{ -7 // 2 }}{{ -7 % 3 }}{{ 7 % -3 }}{{ 7.5 // 2 }}{{ -7.5 % 2 }}
{{ 1 / 3 }}{{ 6 / 2 }}{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 5.0 % 0 }}
{{ 'a' + 1 }}
{{ 'a' * 3 }}{{ 3 * 'a' }}{{ 'a' * -1 }}{{ [1] * 2 }}{{ (1,) * 2 }}{{ 'a' * 1.5 }}
{{ 1 ~ 2 ~ 'a' ~ none ~ [1] }}
{{ -n|abs }}{{ -3|abs }}{{ (-3)|abs }}{{ +n }}{{ -s }}
{{ n is odd and n is not even }}{{ n is divisibleby 7 }}{{ n is divisibleby(2) or true }}
{{ 1 is 2 is 3 }}
{{ n is in xs }}{{ 1 is in(xs) }}{{ n is not in xs }}
{{ 1e16 }}{{ 1e15 }}{{ 0.1 + 0.2 }}{{ 1e-5 }}{{ 0.0001 }}{{ -0.0 }}{{ 1e308 * 10 }}{{ 5e-324 }}{{ 123456789012345678.0 }}
{{ true }}{{ True }}{{ none }}{{ None }}{{ false }}{{ [true, none, 1.0, 'a\'b', "it's", 'q"\'', '\n\\'] }}
{{ (1,) }}{{ () }}{{ (1, 2) }}{{ 1, 2 }}{{ [] }}{{ {'a': [1, {'b': none}]} }}{{ {1: 2, none: 3, (1, 2): 4} }}
{{ {[]: 1} }}
{{ {1: 'a', 1.0: 'b', true: 'c'} }}
{{ dict(a=1, b=2) }}{{ dict([('a', 1)], c=3) }}{{ dict(d, b=9) }}{{ dict.fromkeys(['a'], 1) }}{{ dict() }}{{ dict(1) }}
{{ dict([(1, 2, 3)]) }}
{{ cycler(1, 2).next() }}{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{{ c.reset() }}{{ c.next() }}{{ c.pos }}{{ c.items }}
{{ cycler() }}
{% set j = joiner() %}{{ j() }}a{{ j() }}b{{ j() }}
{% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j(1) }}
{{ raise_exception('no') }}
{% if z %}{{ raise_exception('no') }}{% endif %}ok
{{ strftime_now('%Y-%m-%d %H:%M:%S %d %b %B %a %A %j %p %I %y %U %w %% %-d %e %Z|%z|%f %F %T %D %R %G %V %u %c %x %X') }}
{{ strftime_now('%Q %') }}
{{ strftime_now() }}
{{ m(*[1], **{}) }}
{% macro m(a, b) %}{{ a }}{{ b }}{{ kwargs }}{% endmacro %}{{ m(*[1, 2], **{'z': 3}) }}{{ m(**d) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
{{ f(1, 2 }}
{{ f(a=1, 2) }}
{{ f(**d, *xs) }}
{{ f(a=1, a=2) }}
{{ x|nosuch }}
{{ 1 if true else x|nosuch }}
{% if z %}{{ x|nosuch }}{% endif %}ok
{% if n %}{{ x|nosuch }}{% endif %}ok
{% if z %}{% for x in xs %}{{ x|nosuch }}{% endfor %}{% endif %}
{{ x is nosuch }}
{{ loop }}
{{ self }}
{{ caller }}
{{ varargs }}
{{ messages[0].content[:4] + '…' }}{{ messages[-1]['role'] }}{{ messages|length }}{{ (messages|last).role }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if p.type == 'image' %}<image>{% elif p['type'] == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
{% for x in xs|map('string') %}{{ loop.length }}{{ loop.last }}{{ x }}{{ loop.revindex }}{% endfor %}
{% set g = xs|map('string') %}{{ g|first }}{{ g|list }}{{ g|list }}
{{ rows|groupby('k') }}{% for k, v in rows|groupby('k') %}{{ k }}{{ v|length }}{% endfor %}{{ (rows|groupby('k'))[0].grouper }}{{ (rows|groupby('k'))[0].list|length }}
{{ rows|map(attribute='k')|join(',') }}{{ rows|sum(attribute='o.p') }}
{{ 'x'|center(5)|replace(' ', '.') }}{{ 'ab'|list }}{{ 'a b'|title }}{{ "it's o'neil (hi) [x] foo-bar"|title }}
{{ 'www.example.com mailto:a@b.co a@b.org (http://x.yz/a?b=c), <https://foo.io>. ftp://q.com'|urlize }}
{{ 'A very-long hyphenated-word and a-b c--d word—dash xxxxxxxxxxxxxxxxxxxxx'|wordwrap(10) }}
{{ "a 'long' string that goes on and on for more than eighty characters, because pprint breaks lines there"|pprint }}
{{ [rows, rows, d, tools]|pprint }}
{{ {'k': 'a long string that goes on and on for more than eighty characters, because it breaks lines', 'a': (1,)}|pprint }}
{{ '&lt;a&gt; &amp; &#39;x&#x41; &nbsp;|&copy &bogus;'|striptags }}{{ '<a <b>>x</a><!-- c -->  y'|striptags }}
{{ 1|tojson }}{{ none|tojson }}{{ true|tojson }}{{ 1.0|tojson }}{{ 1e20|tojson }}{{ (1, 2)|tojson }}{{ {1: 2, none: 3, true: 4, 1.5: 6}|tojson }}
{{ {'b': 1, 'a': {'d': [], 'c': {}}}|tojson(indent=2, sort_keys=true) }}
{{ {1: 1, 'a': 2}|tojson(sort_keys=true) }}
{{ missing|tojson }}
{{ [missing]|tojson }}
{{ d.items()|tojson }}
{{ range(3)|tojson }}
{{ 'é\u2028\x7f\x00😀"\\/'|tojson }}{{ 'é😀\x7f'|tojson(ensure_ascii=true) }}
{{ (1e308*10)|tojson }}{{ [1, 2]|tojson(separators=('; ', '=')) }}{{ (10**30)|tojson }}
{{ 3.0|int }}{{ '3.9'|int }}{{ 'x'|int }}{{ 'x'|int(7) }}{{ '0b11'|int(0, 2) }}{{ 'z'|int(base=36) }}{{ ' 12 '|int }}{{ '1_0'|int }}{{ none|int }}{{ true|int }}{{ 1e30|int }}{{ '1e3'|int }}{{ 'inf'|int }}{{ 'nan'|float }}
{{ (1e308*10)|int }}
{{ 2.5|round }}{{ 3.5|round }}{{ 2.675|round(2) }}{{ 1234|round(-2) }}{{ 1250|round(-2) }}{{ 1350|round(-2) }}{{ 2.1|round(method='ceil') }}{{ -2.1|round(0, 'floor') }}{{ 7|round }}{{ 1.25|round(1) }}{{ 1234.5|round(-2) }}
{{ 0|filesizeformat }}{{ 1|filesizeformat }}{{ 999|filesizeformat }}{{ 1000|filesizeformat }}{{ 123456789|filesizeformat(true) }}{{ 1e30|filesizeformat }}{{ '12'|filesizeformat }}{{ -5|filesizeformat }}
{{ {'a': 'x y', 'b': 'ü/&'}|urlencode }}{{ 'a/b c&ü'|urlencode }}{{ [('a', 1), ('b', 'c d')]|urlencode }}{{ 5|urlencode }}
{{ {'class': 'a b', 'id': none, 'x<': '"'}|xmlattr }}{{ {'a b': 1}|xmlattr }}
{{ h|e|e }}{{ h|e }}{{ h|forceescape }}{{ (h|e)|forceescape }}{{ h|safe|e }}{{ (h|safe) + '<' }}{{ '<' + (h|safe) }}{{ (h|safe)|upper }}{{ [h|safe] }}
{{ (h|safe).replace('b', '<') }}{{ (h|safe).join(['<', '>']) }}{{ (h|safe).split() }}{{ (h|safe)[1:3] }}{{ (h|safe).center(20, '<') }}{{ (h|safe).striptags() }}{{ (h|safe).unescape() }}
""".split("\n") if l]

# Rules of the reference found by a larger comparison with other kinds of templates, one line per rule.
RULES = [l for l in r"""
{#
a{#
{{ -2 ** n }}{{ -1.5 ** n }}{{ (1 - 4) ** n }}{{ -2 ** 2 }}{{ (-n) ** 2 }}{{ -true ** n }}{{ -(2 ** 70) ** z }}{{ -0.0 ** z }}
{{ 1e400 }}{{ [1e400] }}{{ 1e400 if t else 1 }}
{{ [1e400, n] }}
{{ es or 1e400 }}
{{ (1e400).hex() }}
{{ n < 1e400 }}
{{ 1e400 < 3 > n }}
{{ [1e400, 2][1] + n }}
{% set x = -1e400 %}
{% set x = 1e308 * 10 %}
{% if 1e400 %}a{% endif %}
{{ [1e400]|map('string')|list }}
{{ s|default(1e400 - 1e400) }}
{{ 1 or nosuch.a.b }}{{ 0 and nosuch.a.b }}{{ 1 if true else nosuch.a.b }}{{ 3 < 2 < nosuch.a }}
{% set x = 1[0:1] %}
{% if 1[0:1] is defined %}a{% else %}b{% endif %}{{ 1[0:1] is defined }}
{{ 'ab'[1.0::0] }}
{{ 'é\é\日\😀' }}{{ 'a\éb'|length }}
{% set ℘ = 1 %}{% set a·b = 2 %}{% set Ⅷ = 3 %}{% set a‿b = 4 %}{{ ℘ }}{{ a·b }}{{ Ⅷ }}{{ a‿b }}{{ xs℘ }}
{{ a² }}
{% for in in xs %}{{ in }}{% endfor %}
{% for x, in in [(1, 2)] %}{{ x }}{{ in }}{% endfor %}
{% for x, in [[1]] %}{{ x }}{% endfor %}
{% for x in xs, recursive %}{{ x }}{% endfor %}
{% for recursive in xs recursive %}{{ recursive }}{% endfor %}
{{ dict(missing) }}
{{ namespace(missing) }}
{{ dict.fromkeys(missing) }}
{{ missing.__class__ }}{{ xs[99].__len__ }}{{ caller.__class__ is defined }}
{{ missing.__contains__ }}
{{ missing['__class__'] }}
{{ 'a\nb'.splitlines(none) }}
{{ 'a\nb'.splitlines(1) }}{{ 'a\nb'.splitlines(-1) }}
{{ 'a\nb'.splitlines(2 ** 31) }}
{{ xs|sort('') }}
{{ xs|sort(missing) }}
{{ xs|sort(1) }}{{ d|dictsort(reverse=0) }}
{{ d|dictsort(reverse='x') }}
{{ 714.95|round(-1) }}{{ 715.0|round(-1) }}{{ 725.0|round(-1) }}{{ 1499.9999|round(-3) }}{{ 0.99|round(-1) }}
{{ 1.1e308|round(0, 'ceil')|int|string|length }}{{ (2 ** 1023) / 1 }}{{ (2 ** 1023 + 1) / 3 }}{{ 10 ** 300 / 10 ** 10 }}
{{ 0.0001 * 2 ** 64 }}{{ 4503599627370496.5 }}{{ 2251799813685248.25 }}{{ 5e-324 }}{{ 9007199254740993.0 }}
{{ '０'|int }}{{ '٣٫'|int }}{{ '٣'|int }}{{ '-१२.५'|float }}{{ '𝟗𝟘'|int }}{{ '²'|int(7) }}
{{ (-9223372036854775808) * 'ab' }}|{{ [1] * -9223372036854775808 }}
{{ 'a' * 2 ** 70 }}
{{ 'a' * -(2 ** 70) }}
{{ range(2 ** 63, 2 ** 64)|length }}
{{ range(2 ** 64, 5)|length }}
{{ e.translate(missing) }}{{ e.translate(5) }}
{{ 'ŉ ᾳ ᾲ ᾀ ﬁ ß ΐ'.title() }}{{ 'ŉa'.capitalize() }}{{ 'ᾳA'|capitalize }}{{ 'ᾼ'.capitalize() }}
{{ 'ΑΣ ΣΑ ΑΣ.'.swapcase() }}
{{ '%5%' % 1 }}
{{ '%.%' % () }}
{{ '%(a)%' % d }}
{{ '%%|%s' % 1 }}
{{ '%(b)s %s' % d }}
{{ '%s %(b)s' % d }}
{{ '%(b)*d' % d }}
{{ '{:-5}'.format('a') }}
{{ '{:-5}|{:-c}'.format(1, 65) }}
{{ ('{:<<-5.0}'|safe).format('a') }}
{{ 3|map('upper')|string|wordcount }}{{ 3|selectattr is not none }}{{ 1.5|select('nope') == {} }}
{{ 3|map('upper')|list }}
{{ xs|map('nope') is none }}{{ xs|slice('a') is none }}{{ rows|unique is none }}{{ 5|unique is none }}
{{ rows|unique|list }}
{{ xs|batch }}
{{ xs|slice }}
{{ 'a b'|urlize('x') }}
{{ 'http://x.org'|urlize('x') }}
{{ 'http://x.org'|urlize(5) }}{{ 'http://x.org'|urlize(-3) }}
{{ s|tojson(indent=1.5) }}{{ 'a'|tojson(separators=('a', 1)) }}{{ 'a'|tojson(separators=[1, none], indent=[]) }}
{{ 1|tojson(indent=1.5) }}
{{ 'a'|tojson(separators=(1, 2, 3)) }}
{{ '<!-- a <b>c</b>'|striptags }}|{{ 'x <!-- <b> --> y <i'|striptags }}|{{ '<a <!-- >--> b'|striptags }}|{{ '<!--> c -->d'|striptags }}
{{ '&#x1F;&#x80;&#150;&#13;&#0;&#xFDD0;&#xFFFE;&#xD800;&#x110000;'|striptags }}{{ '&ampx &ltb; &copyright; &amp;amp; &apos;'|striptags }}
{{ (h|safe + '\n<')|indent('> ', true) }}{{ 'a\nb'|indent('> ') }}
{% set x | replace('a', nosuch) %}a{% endset %}{{ x }}
{% set x | replace('a', s) %}a{% endset %}{{ x }}
{{ e }}{% set x | replace('a', e) %}ab{% endset %}{{ x }}
{% set x | replace('a', e) %}ab{{ e }}{% endset %}{{ x }}
{% filter list %}ab{% endfilter %}
{% filter int %}1{% endfilter %}
{% filter length %}ab{% endfilter %}
{% filter default(n) %}ab{% endfilter %}{% autoescape true %}{% filter string %}<{% endfilter %}{% endautoescape %}
{% generation %}{{ kwargs }}{{ varargs }}{{ caller is defined }}{% endgeneration %}{{ kwargs is defined }}
{% generation %}{{ caller() }}{% endgeneration %}
{% macro m() %}{% generation %}{{ caller is defined }}{{ varargs }}{% endgeneration %}{{ varargs }}{% endmacro %}{% call m(1, 2) %}x{% endcall %}
{% macro m() %}{% endmacro %}{% for x in es %}{% call m(caller=1) %}{% endcall %}{% endfor %}
{% macro m(a) %}{{ kwargs }}{% endmacro %}{% call m(1, **{'q': 3}) %}{% endcall %}{% call m(1, p=2, **{'q': 3}) %}{% endcall %}
{% macro m() %}{% macro i(caller=none) %}{% endmacro %}{{ caller is defined }}{% endmacro %}{{ m.caller }}{{ m() }}
{% macro m() %}{% macro i(kwargs=1) %}{% endmacro %}{{ kwargs }}{% endmacro %}{{ m(z=1) }}
{% macro m() %}{{ kwargs }}{% macro i(kwargs=1) %}{% endmacro %}{% endmacro %}{{ m(z=1) }}
{% if z %}{% with %}{% extends 'x' %}{% endwith %}{% endif %}
{% if z %}{% block a %}{% extends 'x' %}{% endblock %}{% endif %}
{% if z %}{% for x in es %}{% extends 'x' %}{% endfor %}{% endif %}
{% set n %}[{{ n }}]{% endset %}{{ n }}
{{ n }}{% set n %}[{{ n }}]{% endset %}{{ n }}
{% if t %}{% set n %}[{{ n }}]{% endset %}{% endif %}{{ n }}
{% for x in xs %}{{ n }}{% endfor %}{% set n = 1 %}{{ n }}
{% for x in xs %}{{ n }}{% endfor %}{% if z %}{% set n = 1 %}{% endif %}{{ n }}
{% macro m() %}{{ n }}{% endmacro %}{{ m() }}{% set n = 1 %}{{ m() }}
{% for x in xs %}{% set n %}[{{ n }}]{% endset %}{{ n }}{% endfor %}{{ n }}
{% for x in xs %}{% with %}{{ n }}{% endwith %}{% set n = x %}{% endfor %}
{% macro m(a=n) %}{% set s %}<{{ s|length }}{{ a }}>{% endset %}{{ s }}{% endmacro %}{{ m() }}
{% block a %}{{ n }}{% endblock %}{% set n = 1 %}{{ self.a() }}
{% block a %}{% for x in xs %}{{ n }}{% endfor %}{% set n = 1 %}{{ n }}{% endblock %}
{% for x in xs %}{% block a scoped %}{{ n }}{{ x }}{% endblock %}{% set n = x %}{% endfor %}
{% for x in xs %}{% with loop = 1 %}{{ loop }}{% endwith %}{% endfor %}
{% for x in es %}{% block a %}{% set loop = 1 %}{% endblock %}{% endfor %}
{% for x in es %}{% macro loop() %}{% endmacro %}{% endfor %}
{% for x in xs %}{% macro loop() %}a{% endmacro %}{{ loop() }}{% endfor %}
{% for x in xs %}{% macro m(loop) %}{{ loop }}{% endmacro %}{{ m(1) }}{% endfor %}
{% for x in xs %}{% call(loop) m(1) %}{% endcall %}{% endfor %}
{% for x in es %}{% for y in es %}{% else %}{% set loop = 1 %}{% endfor %}{% endfor %}
{% for x in es %}{% if x %}{% set a, loop = 1 %}{% endif %}{% endfor %}
{% for x in es %}{% set loop.a = 1 %}{% endfor %}
{% for x in xs %}{% with a, loop = 1, 2 %}{% endwith %}{% endfor %}
{% for x in xs %}{% with (a, loop) = (1, 2) %}{{ a }}{{ loop }}{% endwith %}{% endfor %}
{% generation %}{% for x in xs %}{{ n }}{% endfor %}{% set n = 1 %}{{ n }}{% endgeneration %}{{ n }}
{% set n, (s, u) = n, (1, 2) %}{{ n }}{{ s }}{% set ns = namespace(n=n) %}{% set ns.n, e = 1, ns.n %}{{ e }}
{% autoescape t %}{{ h|safe ~ '<' }}{{ 'a' ~ h }}{% endautoescape %}{% autoescape true %}{{ h|safe ~ '<' }}{% endautoescape %}
{% autoescape t %}{% autoescape true %}{{ h|safe ~ '<' }}{% endautoescape %}{% endautoescape %}
{% autoescape true %}{% block a %}{{ h }}{% endblock %}{{ self.a() }}{{ h }}{% endautoescape %}
{% macro m() %}{{ h }}{{ caller() }}{% endmacro %}{% autoescape true %}{{ m(caller=joiner('<')) }}{% call m() %}{{ h }}{% endcall %}{% endautoescape %}
{% autoescape true %}{% macro m() %}{{ h }}{% endmacro %}{% endautoescape %}{{ m is defined }}{% autoescape true %}{% set k = namespace() %}{% macro o() %}{{ h }}{% endmacro %}{% set k.m = o %}{{ k.m() }}{% endautoescape %}
{{ strftime_now('%5d|%-5d|%05e|%_m|%10V|%^a|%#p|%#Z|%^P|%12F|%012s|%-12s|%5Z|%f|%5n|') }}
{{ strftime_now('%Ey %EY %Ed %OY %Od %OS %Ep %EP %#Eb %^10Q|%5f|%+d|%_-0d|%3%|%') }}{{ strftime_now('%5') }}{{ strftime_now('%-') }}
{{ strftime_now('%2000d')|length }}{{ strftime_now('%1023d')|length }}{{ strftime_now('%1024d')|length }}{{ strftime_now('%99999999999999999999d')|length }}
{{ strftime_now('a\0b') }}
""".split("\n") if l]


def hand_written():
    for value, (name, arguments) in itertools.product(VALUES, FILTERS.items()):
        for argument in arguments:
            yield "{{ (%s)|%s%s }}" % (value, name, argument)
    for value, test in itertools.product(VALUES, TESTS):
        yield "{{ (%s) is %s }}" % (value, test)
    for value, method in itertools.product(["s", "w", "e", "u", "h|safe", "'3'", "'ab-c'", "'Σίσυφος ΑΣ'"], TEXT_METHODS):
        yield "{{ (%s).%s }}" % (value, method)
    for value, method in itertools.product(["xs", "mix", "(1, 'a')", "range(3)", "es", "rows|groupby('k')|first"], LIST_METHODS):
        yield "{{ (%s).%s }}" % (value, method)
    for value, method in itertools.product(["d", "ed", "rows[0]"], DICT_METHODS):
        yield "{{ (%s).%s }}" % (value, method)
    for value, method in itertools.product(["n", "f", "true", "10**20", "neg", "0.1"], NUMBER_METHODS):
        yield "{{ (%s).%s }}" % (value, method)
    for left, operator, right in itertools.product(OPERANDS, ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", ">=", "in", "and"], OPERANDS):
        if (operator, right) == ("**", "10**20"):
            continue  # takes Python too long
        yield "{{ (%s) %s (%s) }}" % (left, operator, right)
    for expression in PRINTF + FORMAT:
        yield "{{ %s }}" % expression
    yield from STATEMENTS


def models():
    for chat, model in itertools.product(CHATS, MODELS):
        yield chat + model


def expression(depth):
    if depth <= 0 or random.random() < 0.15:
        return random.choice(VALUES + OPERANDS + ["x", "loop.index", "'a b'", "1", "2"])
    inner = lambda: expression(depth - 1 - (random.random() < 0.4))
    kind = random.randrange(14)
    if kind < 3:
        name = random.choice(list(FILTERS))
        return "(%s)|%s%s" % (inner(), name, random.choice(FILTERS[name]))
    if kind == 3:
        return "(%s) is %s" % (inner(), random.choice(TESTS))
    if kind == 4:
        return "(%s).%s" % (inner(), random.choice(TEXT_METHODS + LIST_METHODS + DICT_METHODS))
    if kind in (5, 6):
        return "(%s) %s (%s)" % (inner(), random.choice(["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", "in", "not in", "and", "or"]), inner())
    if kind == 7:
        return "[%s]" % ", ".join(inner() for _ in range(random.randrange(3)))
    if kind == 8:
        return "{%s}" % ", ".join("'%s': %s" % (random.choice("abk"), inner()) for _ in range(random.randrange(3)))
    if kind == 9:
        return "(%s if %s else %s)" % (inner(), inner(), inner())
    if kind == 10:
        return "(%s)[%s]" % (inner(), random.choice(["0", "-1", "'a'", "1:", ":2", "::-1", "'k'", "n", "::2", "-2:", "x"]))
    if kind == 11:
        return random.choice(PRINTF + FORMAT)
    if kind == 12:
        return "not (%s)" % inner()
    return "m(%s)" % inner()


def statement(depth):
    if depth <= 0:
        return random.choice([" text\n", "{{ %s }}" % expression(2), "{{- %s -}} " % expression(1), "\n  {# c #}\n", "{{ x }}"])
    body = lambda: "".join(statement(depth - 1) for _ in range(random.randint(1, 2)))
    open, close = random.choice(["{%", "{%", "{%-", "{%+"]), random.choice(["%}", "%}", "-%}", "+%}"])
    tag = lambda words: "%s %s %s" % (open, words, close)
    kind = random.randrange(11)
    if kind < 3:
        return tag("for x in %s%s" % (expression(1), random.choice(["", "", " if x", " if x is string"]))) + body() + random.choice(["", "{% else %}" + body()]) + tag("endfor")
    if kind < 5:
        return tag("if %s" % expression(2)) + body() + random.choice(["", "{% else %}" + body(), "{% elif " + expression(1) + " %}" + body()]) + tag("endif")
    if kind == 5:
        return tag("set x = %s" % expression(2)) + body()
    if kind == 6:
        return tag("set x%s" % random.choice(["", "|upper", "|trim"])) + body() + tag("endset") + "{{ x }}"
    if kind == 7:
        return tag("with x = %s" % expression(1)) + body() + tag("endwith")
    if kind == 8:
        return tag("filter %s" % random.choice(["upper", "trim", "indent(2)", "replace('a', 'b')"])) + body() + tag("endfilter")
    if kind == 9:
        return tag("generation") + body() + tag("endgeneration")
    return tag("call m(%s)" % expression(1)) + body() + tag("endcall")


def random_templates(count):
    prefix = "{% macro m(x=1) %}[{{ x }}{{ caller() if caller }}]{% endmacro %}"
    for _ in range(count):
        source = "{{ %s }}" % expression(3) if random.random() < 0.6 else "".join(statement(2) for _ in range(2))
        yield (prefix if "m(" in source else "") + source


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--random", type=int, default=3000)
    parser.add_argument("--hand-written", type=float, default=1.0, help="fraction of the hand-written templates to keep")
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--out", default=pathlib.Path(__file__).parents[2] / "idefics-template/tests/reference.json")
    args = parser.parse_args()
    random.seed(args.seed)
    sources = [source for source in hand_written() if random.random() < args.hand_written]
    sources = list(dict.fromkeys(itertools.chain(models(), sources, random_templates(args.random), RULES)))
    cases = []
    for source in sources:
        result = render(source)
        if result != ():
            cases.append([source, result])
    with open(args.out, "w") as file:
        file.write('{"now": %d,\n"context": %s,\n"cases": [\n' % (NOW, json.dumps(CONTEXT, ensure_ascii=False)))
        file.write(",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases))
        file.write("\n]}\n")
    print(len(cases), "cases,", sum(result is None for _, result in cases), "of them errors")


if __name__ == "__main__":
    main()
