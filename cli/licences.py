"""Which licence a distribution is under, as far as its metadata tells.

Asked in this order, the more exact first: the SPDX expression, the classifiers, the field `License`,
the licence's text. Several classifiers do not say whether all bind or one may be chosen; they are read
the strict way, as "AND". Part of the example workflow; pure functions.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

Source = Literal["expression", "classifier", "field", "text", "none"]
Family = Literal["permissive", "weak copyleft", "copyleft", "other", "unknown"]

CLASSIFIERS: Final = {
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "BSD License": "BSD",
    "Apache Software License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
    "The Unlicense (Unlicense)": "Unlicense",
    "Zope Public License": "ZPL-2.1",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v2 (LGPLv2)": "LGPL-2.0-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
}

# Searched in this order, in the field `License` and in the licence's text: the longer name first,
# because "GNU General Public License" stands inside "GNU Affero General Public License" too.
PHRASES: Final = (
    (r"affero|\bAGPL", "AGPL-3.0"),
    (r"lesser general public|\bLGPL", "LGPL"),
    (r"general public licen[sc]e|\bGPL", "GPL"),
    (r"mozilla public|\bMPL", "MPL-2.0"),
    (r"\bapache\b", "Apache-2.0"),
    (r"python software foundation|\bPSF\b", "PSF-2.0"),
    (r"permission is hereby granted, free of charge|\bMIT\b|\bexpat\b", "MIT"),
    (r"permission to use, copy, modify,? and/or distribute|\bISC\b", "ISC"),
    (r"redistribution and use in source and binary forms|\b(?:new |3-clause |2-clause )?BSD\b", "BSD"),
    (r"unlicense|public domain", "Unlicense"),
)


class LicenceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a distribution's metadata says of its licence."""

    expression: str | None = None
    classifiers: list[str] = []
    field: str | None = None
    text: str | None = None


class Licence(msgspec.Struct, frozen=True, kw_only=True):
    """The finding: an SPDX name or expression, how it is known, and what kind of licence it is."""

    spdx: str | None
    source: Source
    family: Family


def classify(facts: LicenceFacts) -> Licence:
    """Return the licence that the facts point to.

    >>> classify(LicenceFacts(expression="MIT OR Apache-2.0")).family
    'permissive'
    >>> classify(LicenceFacts(classifiers=["License :: OSI Approved :: BSD License"])).spdx
    'BSD'
    """
    spdx, source = _found(facts)
    return Licence(spdx=spdx, source=source, family=family_of(spdx))


def _found(facts: LicenceFacts) -> tuple[str | None, Source]:
    if facts.expression:
        return facts.expression, "expression"
    named = [classifier.rpartition(" :: ")[2] for classifier in facts.classifiers]
    known = sorted({CLASSIFIERS.get(name, name) for name in named if name != "OSI Approved"})
    if known:
        return " AND ".join(known), "classifier"
    if facts.field and (spdx := _phrase(facts.field)):
        return spdx, "field"
    if facts.text and (spdx := _phrase(facts.text)):
        return spdx, "text"
    return None, "none"


def _phrase(text: str) -> str | None:
    words = " ".join(text.split())
    return next((spdx for phrase, spdx in PHRASES if re.search(phrase, words, re.IGNORECASE)), None)


def family_of(spdx: str | None) -> Family:
    """Return what kind of licence an SPDX name or expression is; of several, the strictest that binds."""
    if spdx is None:
        return "unknown"
    if re.search(r"\bAGPL|\bGPL", spdx) and " OR " not in spdx:
        return "copyleft"
    if re.search(r"\b(?:LGPL|MPL|EPL|CDDL)", spdx) and " OR " not in spdx:
        return "weak copyleft"
    if re.search(r"\b(?:MIT|BSD|0BSD|Apache|ISC|PSF|Unlicense|CC0|Zlib|ZPL|Python|HPND|BSL)", spdx):
        return "permissive"
    return "other"
