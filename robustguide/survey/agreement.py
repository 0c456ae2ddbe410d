"""How far raters agree beyond chance.

Krippendorff's alpha of nominal values compares the disagreement of values that were given to one
unit with that of values paired at random (Krippendorff 2011, Computing Krippendorff's
alpha-reliability):

    alpha = 1 - D_o / D_e = 1 - (n - 1) sum_{c != k} o_ck / sum_{c != k} n_c n_k

o_ck counts, in all units, ordered pairs of a value c and a value k of two raters, each with weight
1 / (m_u - 1) where m_u raters gave the unit a value; n_c = sum_k o_ck and n = sum_c n_c. It is 1
where raters always agree, 0 where they agree as by chance, and below 0 where they agree less.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def krippendorff(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Alpha of nominal values.

    Args:
        units: The values that raters gave to each; those that are missing are left out.

    Returns:
        Null where no unit has two values, or all values are the same: then nothing is known.
    """
    totals: Counter[Hashable] = Counter()
    agreed = 0.0
    for values in units:
        if len(values) < 2:
            continue  # pairs with nothing
        counts = Counter(values)
        totals.update(counts)
        agreed += sum(count * (count - 1) for count in counts.values()) / (len(values) - 1)
    n = totals.total()
    by_chance = sum(count * (n - count) for count in totals.values())
    if not by_chance:
        return None
    return 1 - (n - 1) * (n - agreed) / by_chance
