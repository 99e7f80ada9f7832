"""Confounding of the site with age, sex and named covariates.

If subjects differ between sites, removing the site effect removes part of this difference, so every
comparison of sites must be read with this check. A subject counts once per site, however often it
was scanned there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..metrics.distribution import eta_squared

__all__ = ["ConfoundingCheck", "age_by_site", "sex_by_site", "number_by_site", "category_by_site",
           "check_confounding"]

SIGNIFICANCE_LEVEL = 0.05
LARGE_ETA_SQUARED = 0.14  # "large" in Cohen 1988, section 8.2, beyond chance
LARGE_V_SQUARED = 0.25  # V = 0.5, "large" in Cohen 1988, section 7.2, beyond chance
PERMUTATIONS = 9999
MISSING = ("", "n/a", "nan", "none")
MIN_SUBJECTS_PER_SITE = 2
MAX_NAMED_SITES = 6  # more sites are only counted in a warning


@dataclass(frozen=True)
class ConfoundingCheck:
    """Association of one variable with the site.

    Attributes
    ----------
    variable : str
        Name of the variable.
    effect_name : str
        "eta squared" for numbers, "Cramer's V" for categories.
    effect : float
        0 to 1; NaN if it is not defined.
    tests : mapping of str to float
        p value by test; empty if nothing can be tested.
    by_site : mapping of str to str
        Description by site, such as "31 y (20-61), n=4".
    n_subjects : int
        Subjects, counted once per site.
    missing : int
        Of these, subjects without a value.
    warning : str
        Warning for the reader; empty if nothing argues against comparing the sites.
    is_site : bool
        Whether the variable is fully confounded with the site: all subjects of a site have the same
        value, and the sites differ.
    """

    variable: str
    effect_name: str
    effect: float
    tests: Mapping[str, float] = field(default_factory=dict)
    by_site: Mapping[str, str] = field(default_factory=dict)
    n_subjects: int = 0
    missing: int = 0
    warning: str = ""
    is_site: bool = False


def check_confounding(
    subjects: Sequence[str],
    sites: Sequence[str],
    ages: Sequence[float | None],
    sexes: Sequence[str | None],
    seed: int = 0,
    others: Mapping[str, Sequence[object]] | None = None,
) -> tuple[ConfoundingCheck, ...]:
    """Check age, sex and further variables against the site; a subject counts once per site.

    Parameters
    ----------
    subjects, sites : sequence of str, length n
        Subject and site of each scan.
    ages : sequence of float or None, length n
        In years.
    sexes : sequence of str or None, length n
        "M" or "F", or words that start with them.
    seed : int
        Seed of permutations.
    others : mapping of str to sequence, length n, optional
        Further variables. A variable is a number if all its values are numbers and more than two of
        them differ, else a category. None, NaN, "" and "n/a" are missing.

    Returns
    -------
    tuple of ConfoundingCheck
        Age, sex, then the others.
    """
    first = {(who, where): index
             for index, (who, where) in reversed(list(enumerate(zip(subjects, sites))))}
    chosen = sorted(first.values())
    places = [sites[i] for i in chosen]
    named = [_variable_by_site(name, [values[i] for i in chosen], places, seed)
             for name, values in (others or {}).items() if name not in ("age", "sex")]
    return (age_by_site([ages[i] for i in chosen], places),
            sex_by_site([sexes[i] for i in chosen], places, seed), *named)


def _variable_by_site(name: str, values: Sequence[object], sites: Sequence[str], seed: int
                      ) -> ConfoundingCheck:
    texts = ["" if _unknown(value) else str(value).strip() for value in values]
    known = [text if text.lower() not in MISSING else "" for text in texts]
    try:
        numbers = [float(text) if text else None for text in known]
    except ValueError:
        numbers = []
    if len({number for number in numbers if number is not None}) > 2:
        return number_by_site(name, numbers, sites)
    return category_by_site(name, [text or None for text in known], sites, seed)


def age_by_site(ages: Sequence[float | None], sites: Sequence[str]) -> ConfoundingCheck:
    """Check age against the site: one-way ANOVA, Kruskal-Wallis and eta squared.

    Parameters
    ----------
    ages : sequence of float or None, length n
        In years, one value per subject and site.
    sites : sequence of str, length n
        Site of each value.

    Returns
    -------
    ConfoundingCheck
        The effect is eta squared.
    """
    check, groups = _check_number("age", ages, sites, _age_words)
    return _with_warning(check, _age_warning(check, groups))


def number_by_site(variable: str, values: Sequence[float | None], sites: Sequence[str]
                   ) -> ConfoundingCheck:
    """Check a number against the site, with tests and effect as in `age_by_site`.

    Parameters
    ----------
    variable : str
        Name of the variable.
    values : sequence of float or None, length n
        One value per subject and site.
    sites : sequence of str, length n
        Site of each value.

    Returns
    -------
    ConfoundingCheck
        The effect is eta squared.
    """
    check, _ = _check_number(variable, values, sites, _number_words)
    return _with_warning(check, _named_warning(check, check.effect, LARGE_ETA_SQUARED))


def _check_number(variable: str, values: Sequence[float | None], sites: Sequence[str],
                  words: Callable[[Sequence[float]], str]
                  ) -> tuple[ConfoundingCheck, dict[str, list[float]]]:
    """Return the check of a number, without its warning, and the known values by site."""
    groups = _known(values, sites)
    known = [value for group in groups.values() for value in group]
    labels = [site for site, group in groups.items() for _ in group]
    tests = _number_tests([group for group in groups.values()
                           if len(group) >= MIN_SUBJECTS_PER_SITE])
    by_site = {site: words(groups.get(site, [])) for site in sorted(set(sites))}
    check = ConfoundingCheck(variable, "eta squared", eta_squared(known, labels), tests, by_site,
                             len(values), sum(map(_unknown, values)), is_site=_is_site(groups))
    return check, groups


def category_by_site(variable: str, values: Sequence[str | None], sites: Sequence[str],
                     seed: int = 0) -> ConfoundingCheck:
    """Check a category against the site, with tests and effect as in `sex_by_site`.

    Parameters
    ----------
    variable : str
        Name of the variable.
    values : sequence of str or None, length n
        One value per subject and site.
    sites : sequence of str, length n
        Site of each value.
    seed : int
        Seed of permutations.

    Returns
    -------
    ConfoundingCheck
        The effect is Cramer's V.
    """
    groups = _known(values, sites)
    levels = sorted({value for group in groups.values() for value in group})
    table = np.array([[group.count(level) for level in levels] for group in groups.values()],
                     dtype=int).reshape(len(groups), -1)
    by_site = {site: _level_words(groups.get(site, []), levels) for site in sorted(set(sites))}
    enough = max(map(len, groups.values()), default=0) >= MIN_SUBJECTS_PER_SITE
    check = ConfoundingCheck(variable, "Cramer's V", _cramer_v(table),
                             _sex_tests(table, seed) if enough else {}, by_site, len(values),
                             sum(map(_unknown, values)), is_site=_is_site(groups))
    more_levels = max(len(levels) - len(groups), 0) / max(check.n_subjects - check.missing - 1, 1)
    return _with_warning(check, _named_warning(check, check.effect**2 - more_levels,
                                               LARGE_V_SQUARED))


def _is_site(groups: Mapping[str, Sequence[object]]) -> bool:
    """Return whether all subjects of a site have one value and the sites differ.

    With one subject per site this is the case for every variable, so the result is then False.
    """
    values = [set(group) for group in groups.values()]
    return (max(map(len, groups.values()), default=0) > 1 and all(len(v) == 1 for v in values)
            and len(set.union(*values)) > 1)


def _confounded_warning(check: ConfoundingCheck) -> str:
    sites = _first_sites(check)
    return (f"{check.variable[0].upper()}{check.variable[1:]} cannot be told from site: all "
            f"subjects of a site have the same value ({sites}). Removing the site effect also "
            f"removes the effect of {check.variable}, and no test on these data can show whether "
            f"it is preserved. Compare {check.variable} within sites only, or add sites with "
            "several values of it.")


def _first_sites(check: ConfoundingCheck) -> str:
    """Return the descriptions of the first sites."""
    shown = [f"{site}: {words}" for site, words in check.by_site.items()][:MAX_NAMED_SITES]
    more = len(check.by_site) - len(shown)
    return "; ".join(shown) + (f"; and {more} more sites" if more else "")


def _named_warning(check: ConfoundingCheck, variance_fraction: float, large: float) -> str:
    """Return the warning for a variable that the user named."""
    if check.is_site:
        return _confounded_warning(check)
    if not check.tests:
        return _untested(check)
    if not (_any_significant(check) or _beyond_chance(check, variance_fraction) >= large):
        return ""
    return (f"{check.variable[0].upper()}{check.variable[1:]} {_verb(check)} between sites "
            f"({_p_words(check)}; {check.effect_name} {check.effect:.2f}; {_first_sites(check)}). "
            f"Part of the apparent site effect may be an effect of {check.variable}, and "
            "harmonization may remove both.")


def _number_words(values: Sequence[float]) -> str:
    if not values:
        return "unknown"
    return f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g}), n={len(values)}"


def _level_words(values: Sequence[str], levels: Sequence[str]) -> str:
    """Return the counts of the levels that a site has."""
    counts = [f"{values.count(level)} {level}" for level in levels if level in values]
    shown = counts[:MAX_NAMED_SITES]
    return ", ".join(shown + ["..."] * (len(counts) > len(shown))) or "unknown"


def sex_by_site(sexes: Sequence[str | None], sites: Sequence[str], seed: int = 0
                ) -> ConfoundingCheck:
    """Check sex against the site: chi-squared, Fisher's exact test and Cramer's V.

    Fisher's test is for 2 x 2 tables. Larger ones with expected counts below 5 get a p value from
    9999 permutations of the chi-squared statistic.

    Parameters
    ----------
    sexes : sequence of str or None, length n
        One value per subject and site.
    sites : sequence of str, length n
        Site of each value.
    seed : int
        Seed of permutations.

    Returns
    -------
    ConfoundingCheck
        The effect is Cramer's V.
    """
    groups = _known([_sex(sex) for sex in sexes], sites)
    missing = sum(_sex(sex) is None for sex in sexes)
    table = _contingency(groups)
    effect = _cramer_v(table)
    by_site = {site: _sex_words(groups.get(site, [])) for site in sorted(set(sites))}
    check = ConfoundingCheck("sex", "Cramer's V", effect, _sex_tests(table, seed), by_site,
                             len(sexes), missing, is_site=_is_site(groups))
    return _with_warning(check, _sex_warning(check))


def _with_warning(check: ConfoundingCheck, sentence: str) -> ConfoundingCheck:
    return replace(check, warning=sentence)


def _unknown(value: object) -> bool:
    return value is None or (isinstance(value, float) and not np.isfinite(value))


def _known(values: Sequence, sites: Sequence[str]) -> dict[str, list]:
    """Return the known values by site, sites sorted."""
    groups: dict[str, list] = {}
    for site, value in sorted(zip(sites, values), key=lambda pair: pair[0]):
        if not _unknown(value):
            groups.setdefault(site, []).append(value)
    return groups


def _number_tests(groups: list[list[float]]) -> dict[str, float]:
    """Return p of one-way ANOVA and Kruskal-Wallis; empty with fewer than two sites or values."""
    from scipy import stats

    if len(groups) < 2 or len(set(np.concatenate(groups))) < 2:
        return {}
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"ANOVA": float(stats.f_oneway(*groups).pvalue),
                "Kruskal-Wallis": float(stats.kruskal(*groups).pvalue)}


def _sex(value: str | None) -> str | None:
    """Return "M" or "F" from the spellings of participants.tsv, None for anything else."""
    letter = (value or "").strip()[:1].upper()
    return letter if letter in ("M", "F") else None


def _contingency(groups: Mapping[str, list[str]]) -> np.ndarray:
    """Return the counts of women and men, shape (sites, 2)."""
    counts = [[group.count("F"), group.count("M")] for group in groups.values()]
    return np.array(counts, dtype=int).reshape(-1, 2)


def _testable(table: np.ndarray) -> bool:
    return min(table.shape) >= 2 and bool((table.sum(axis=0) > 0).all())


def _sex_tests(table: np.ndarray, seed: int) -> dict[str, float]:
    from scipy import stats

    if not _testable(table):
        return {}
    tests = {"chi-squared": float(stats.chi2_contingency(table, correction=False)[1])}
    if table.shape == (2, 2):
        tests["Fisher's exact"] = float(stats.fisher_exact(table)[1])
    elif stats.contingency.expected_freq(table).min() < 5:
        tests["permutation"] = _permutation_p(table, seed)
    return tests


def _permutation_p(table: np.ndarray, seed: int) -> float:
    """Return p of the chi-squared statistic over random tables with the same margins."""
    from scipy import stats

    drawn = stats.random_table(table.sum(axis=1), table.sum(axis=0)).rvs(
        size=PERMUTATIONS, random_state=np.random.default_rng(seed))
    expected = stats.contingency.expected_freq(table)
    statistics = ((drawn - expected) ** 2 / expected).sum(axis=(1, 2))
    observed = ((table - expected) ** 2 / expected).sum()
    return float((1 + np.count_nonzero(statistics >= observed - 1e-9)) / (1 + PERMUTATIONS))


def _cramer_v(table: np.ndarray) -> float:
    """Return sqrt(chi2 / (n (min(rows, columns) - 1))), 0 to 1; NaN if not defined."""
    from scipy import stats

    if not _testable(table):
        return float("nan")
    chi2 = stats.chi2_contingency(table, correction=False)[0]
    return float(np.sqrt(chi2 / (table.sum() * (min(table.shape) - 1))))


def _age_words(ages: Sequence[float]) -> str:
    if not ages:
        return "unknown"
    return f"{np.mean(ages):.0f} y ({min(ages):.0f}-{max(ages):.0f}), n={len(ages)}"


def _sex_words(sexes: Sequence[str]) -> str:
    return f"{sexes.count('F')} F, {sexes.count('M')} M" if sexes else "unknown"


def _age_warning(check: ConfoundingCheck, groups: Mapping[str, list[float]]) -> str:
    if check.is_site:
        return _confounded_warning(check)
    if not check.tests:
        return _untested(check)
    if not (_any_significant(check) or _beyond_chance(check, check.effect) >= LARGE_ETA_SQUARED):
        return ""
    means = _extremes({site: float(np.mean(ages)) for site, ages in groups.items()})
    return (f"Age {_verb(check)} between sites ({_p_words(check)}): the site label explains "
            f"{100 * check.effect:.0f} % of the variance of age ({means}). Part of the apparent "
            "site effect may be an effect of age, and harmonization may remove both. Read every "
            "comparison of sites with this in mind.")


def _extremes(means: Mapping[str, float]) -> str:
    """Return the mean age of every site, or of the youngest and the oldest of many sites."""
    words = {site: f"{site} {mean:.0f} y" for site, mean in means.items()}
    if len(means) <= MAX_NAMED_SITES:
        return ", ".join(words.values())
    youngest, oldest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return f"from {words[youngest]} to {words[oldest]}"


def _sex_warning(check: ConfoundingCheck) -> str:
    if check.is_site:
        return _confounded_warning(check)
    if not check.tests:
        return _untested(check)
    if not (_any_significant(check)
            or _beyond_chance(check, check.effect**2) >= LARGE_V_SQUARED):
        return ""
    counts = "; ".join(f"{site}: {words}" for site, words in check.by_site.items())
    counts = counts if len(check.by_site) <= MAX_NAMED_SITES else f"{len(check.by_site)} sites"
    return (f"The proportion of women and men {_verb(check)} between sites ({_p_words(check)}; "
            f"Cramer's V {check.effect:.2f}; {counts}). Part of the apparent site effect "
            "may be an effect of sex, and harmonization may remove both.")


def _untested(check: ConfoundingCheck) -> str:
    if len(check.by_site) < 2:
        return ""
    words = f"It is unknown whether {check.variable} differs between sites: "
    if not check.missing:
        return words + "there are too few subjects per site, or all have the same value."
    if check.missing == check.n_subjects:
        return (f"{words}no subject has a value. Add a column '{check.variable}' to "
                "participants.tsv to check it.")
    return (f"{words}the value is missing for {check.missing} of {check.n_subjects} "
            "subjects, counted once per site, and the others are too few or have the same value. "
            f"Fill the column '{check.variable}' of participants.tsv to check it.")


def _beyond_chance(check: ConfoundingCheck, variance_fraction: float) -> float:
    """Return a fraction of variance minus its expectation by chance, (k - 1) / (n - 1)."""
    known = check.n_subjects - check.missing
    return variance_fraction - (len(check.by_site) - 1) / max(known - 1, 1)


def _verb(check: ConfoundingCheck) -> str:
    return "differs" if _any_significant(check) else "may differ"


def _any_significant(check: ConfoundingCheck) -> bool:
    return any(p < SIGNIFICANCE_LEVEL for p in check.tests.values())


def _p_words(check: ConfoundingCheck) -> str:
    return ", ".join(f"{name} p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
                     for name, p in check.tests.items())
