"""MR signal of tissues: relaxation times from the literature and signal equations.

Each tissue has T1, T2, T2* (ms, at 1.5 and 3 T) and proton density (1 = water). A pulse sequence
turns them into a *signed* transverse magnetization. The tissues of a voxel are therefore mixed
before the magnitude is taken, as in a scanner: an inverted and a recovered tissue cancel.

Sources of the relaxation times, rounded. Values marked "chosen" lie within the range of the
literature, which for T1 is about 20 %.

* gray and white matter, 1.5 T: T1 after Rooney et al. 2007 (doi:10.1002/mrm.21122), T2 after
  Stanisz et al. 2005 (doi:10.1002/mrm.20605)
* gray and white matter, 3 T: T1 and T2 after Wansapura et al. 1999
  (doi:10.1002/(SICI)1522-2586(199904)9:4<531::AID-JMRI4>3.0.CO;2-L)
* T2* of cortex, white matter and putamen: Peters et al. 2007 (doi:10.1016/j.mri.2007.02.014)
* deep gray matter: T1 and T2 chosen between cortex and white matter
* cerebrospinal fluid: T1 after Rooney et al. 2007; T2 and T2* chosen
* muscle, fat and marrow: after Gold et al. 2004 (doi:10.2214/ajr.183.2.1830343); T2* chosen
* skin, vitreous body: chosen near muscle and near water
* proton densities: after the BrainWeb phantom, Kwan et al. 1999 (doi:10.1109/42.816072); the
  value of bone as there
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ..errors import UsageError, did_you_mean

__all__ = [
    "PHANTOM_TISSUES", "FIELD_STRENGTHS_T", "Relaxation", "Sequence", "relaxation_of", "signal",
    "signal_slopes",
    "signals",
]

PHANTOM_TISSUES = ("csf", "gm", "wm", "deep", "bone", "marrow", "fat", "muscle", "skin", "vitreous")
"""Tissues in the order of a subject's fractions; `deep` is subcortical gray matter."""

FIELD_STRENGTHS_T = (1.5, 3.0)
"""Field strengths (tesla) with relaxation times."""


@dataclass(frozen=True)
class Relaxation:
    """Relaxation times in ms, and the proton density relative to water."""

    t1: float
    t2: float
    t2_star: float
    density: float


_TABLE = MappingProxyType({
    #            1.5 T                                 3 T
    "csf": (Relaxation(4070, 1500, 1000, 1.00), Relaxation(4200, 1400, 800, 1.00)),
    "gm": (Relaxation(1188, 95, 84, 0.86), Relaxation(1331, 110, 66, 0.86)),
    "wm": (Relaxation(656, 72, 66, 0.77), Relaxation(832, 80, 53, 0.77)),
    "deep": (Relaxation(980, 82, 56, 0.83), Relaxation(1130, 88, 32, 0.83)),
    "bone": (Relaxation(900, 1.5, 1.0, 0.15), Relaxation(1000, 1.2, 0.8, 0.15)),
    "marrow": (Relaxation(400, 110, 20, 0.40), Relaxation(450, 100, 12, 0.40)),
    "fat": (Relaxation(288, 165, 45, 0.90), Relaxation(371, 133, 35, 0.90)),
    "muscle": (Relaxation(1130, 35, 28, 0.85), Relaxation(1420, 32, 24, 0.85)),
    "skin": (Relaxation(900, 40, 25, 0.70), Relaxation(1050, 36, 20, 0.70)),
    "vitreous": (Relaxation(3900, 1000, 700, 0.98), Relaxation(4000, 900, 600, 0.98)),
})

# Change of ln T1, ln T2 (and ln T2*) and ln PD per unit of texture one and texture two. Texture one
# is like myelin (T1 and T2 together), texture two like iron (T2 alone). An image of one contrast
# therefore does not determine the other, as in real brains.
_SENSITIVITY = MappingProxyType({
    "csf": ((0.01, 0.01, 0.004), (0.0, 0.01, 0.0)),
    "gm": ((0.050, 0.025, 0.008), (0.0, 0.030, 0.0)),
    "wm": ((0.035, 0.020, 0.006), (0.0, 0.025, 0.0)),
    "deep": ((0.055, 0.030, 0.008), (0.0, 0.060, 0.0)),
    "bone": ((0.05, 0.05, 0.10), (0.0, 0.0, 0.0)),
    "marrow": ((0.10, 0.05, 0.15), (0.0, 0.05, 0.0)),
    "fat": ((0.06, 0.05, 0.08), (0.0, 0.05, 0.0)),
    "muscle": ((0.06, 0.06, 0.06), (0.0, 0.05, 0.0)),
    "skin": ((0.06, 0.05, 0.08), (0.0, 0.05, 0.0)),
    "vitreous": ((0.01, 0.01, 0.0), (0.0, 0.0, 0.0)),
})


@dataclass(frozen=True)
class Sequence:
    """Pulse sequence; times in ms, angles in degrees.

    Attributes
    ----------
    kind : str
        "spgr" (spoiled gradient echo), "mprage" (inversion-prepared gradient-echo train),
        "spin_echo" (T2w, PDw; the echo time of a turbo sequence is its effective one) or "flair"
        (inversion recovery, spin-echo readout).
    tr : float
        Repetition time; of "mprage" from inversion to inversion.
    te : float
        Echo time.
    ti : float
        Inversion time to the center of k-space ("mprage", "flair").
    flip : float
        Excitation angle ("spgr", "mprage").
    echoes : int
        Length of the "mprage" train.
    echo_spacing : float
        Time between the excitations of the "mprage" train.
    """

    kind: str
    tr: float
    te: float
    ti: float = 0.0
    flip: float = 90.0
    echoes: int = 160
    echo_spacing: float = 7.5

    def __post_init__(self) -> None:
        if self.kind not in _EQUATIONS:
            hint = did_you_mean(self.kind, _EQUATIONS)
            raise UsageError(f"sequence {self.kind!r} is not known. {hint}")
        if min(self.tr, self.te) <= 0 or self.te >= self.tr:
            raise UsageError(f"expected 0 < TE < TR in ms, got TE={self.te}, TR={self.tr}.")


def relaxation_of(tissue: str, field: float) -> Relaxation:
    """Return the relaxation of a tissue at 1.5 or 3 T.

    Raises
    ------
    UsageError
        If the tissue or the field strength is unknown.
    """
    if tissue not in _TABLE:
        raise UsageError(f"tissue {tissue!r} is not known. {did_you_mean(tissue, _TABLE)}")
    if field not in FIELD_STRENGTHS_T:
        raise UsageError(f"relaxation times are known at 1.5 and 3 T, got {field} T.")
    return _TABLE[tissue][FIELD_STRENGTHS_T.index(field)]


def signal(relaxation: Relaxation, sequence: Sequence) -> float:
    """Return the signed transverse magnetization at readout; relaxed water gives 1."""
    return relaxation.density * _EQUATIONS[sequence.kind](relaxation, sequence)


def signal_slopes(tissue: str, field: float, sequence: Sequence) -> tuple[float, float, float]:
    """Return the signal of a tissue and its derivatives along the two textures.

    The textures change the relaxation times by a few percent, so that a first-order expansion
    suffices.
    """
    base = relaxation_of(tissue, field)
    step = 0.5
    slopes = []
    for sensitivity in _SENSITIVITY[tissue]:
        up, down = (signal(_with_texture(base, sensitivity, sign * step), sequence)
                    for sign in (1, -1))
        slopes.append((up - down) / (2 * step))
    return signal(base, sequence), slopes[0], slopes[1]


def _with_texture(base: Relaxation, sensitivity: tuple[float, float, float], amount: float
                  ) -> Relaxation:
    """Return the relaxation at a texture of this amount."""
    s1, s2, s0 = (math.exp(s * amount) for s in sensitivity)
    return Relaxation(base.t1 * s1, base.t2 * s2, base.t2_star * s2, base.density * s0)


def _spgr(r: Relaxation, q: Sequence) -> float:
    """Return the Ernst steady state: sin a (1 - E1) / (1 - E1 cos a) exp(-TE / T2*)."""
    e1, angle = math.exp(-q.tr / r.t1), math.radians(q.flip)
    return math.sin(angle) * (1 - e1) / (1 - e1 * math.cos(angle)) * math.exp(-q.te / r.t2_star)


def _mprage(r: Relaxation, q: Sequence) -> float:
    """Return the periodic steady state at the center of k-space [1]_.

    A cycle is an inversion, a delay, half a train, the center of k-space, half a train and a delay.
    Every step maps Mz to a Mz + b; the cycle's fixed point is the steady state. This is eq. 1 of
    [1]_ with one train and a perfect inversion.

    References
    ----------
    .. [1] Marques JP, et al. (2010). MP2RAGE, a self bias-field corrected sequence. NeuroImage
       49:1271-1281. doi:10.1016/j.neuroimage.2009.10.002
    """
    half = q.echoes // 2 * q.echo_spacing
    train = _power(_shot(r, q), q.echoes // 2)
    before = _chain((-1.0, 0.0), _recover(r, max(q.ti - half, 0.0)), train)
    after = _chain(train, _recover(r, max(q.tr - q.ti - half, 0.0)))
    a, b = _chain(before, after)
    center = before[0] * b / (1 - a) + before[1]
    return center * math.sin(math.radians(q.flip)) * math.exp(-q.te / r.t2_star)


def _spin_echo(r: Relaxation, q: Sequence) -> float:
    """Return (1 - 2 exp(-(TR - TE/2) / T1) + exp(-TR / T1)) exp(-TE / T2)."""
    recovered = 1 - 2 * math.exp(-(q.tr - q.te / 2) / r.t1) + math.exp(-q.tr / r.t1)
    return recovered * math.exp(-q.te / r.t2)


def _flair(r: Relaxation, q: Sequence) -> float:
    """Return (1 - 2 exp(-TI / T1) + exp(-(TR - TE) / T1)) exp(-TE / T2)."""
    recovered = 1 - 2 * math.exp(-q.ti / r.t1) + math.exp(-(q.tr - q.te) / r.t1)
    return recovered * math.exp(-q.te / r.t2)


def _recover(r: Relaxation, time: float) -> tuple[float, float]:
    """Return free recovery towards 1 as the pair (a, b) of Mz -> a Mz + b."""
    e = math.exp(-time / r.t1)
    return e, 1 - e


def _shot(r: Relaxation, q: Sequence) -> tuple[float, float]:
    """Return one excitation of the train and the recovery after it."""
    return _chain((math.cos(math.radians(q.flip)), 0.0), _recover(r, q.echo_spacing))


def _chain(*steps: tuple[float, float]) -> tuple[float, float]:
    """Compose maps Mz -> a Mz + b, applied one after the other, to one map."""
    a, b = 1.0, 0.0
    for factor, shift in steps:
        a, b = factor * a, factor * b + shift
    return a, b


def _power(step: tuple[float, float], times: int) -> tuple[float, float]:
    """Apply a map `times` times: (a^n, b (1 - a^n) / (1 - a)) with |a| < 1."""
    a, b = step
    return a**times, b * (1 - a**times) / (1 - a)


_EQUATIONS = MappingProxyType({
    "spgr": _spgr, "mprage": _mprage, "spin_echo": _spin_echo, "flair": _flair,
})


def signals(field: float, sequence: Sequence) -> np.ndarray:
    """Return signals and two texture slopes, (tissues, 3), in the order of `PHANTOM_TISSUES`."""
    return np.array([signal_slopes(tissue, field, sequence) for tissue in PHANTOM_TISSUES])
