"""Where an image came from: the watermark in its initial noise, a text in the PNG file, and a signed manifest (C2PA)."""

from ctm.keystream import signs
from ctm.provenance import manifest, text, watermark
from ctm.provenance.binomial import binomial_tail, least_matches
from ctm.provenance.claim import Claim
from ctm.provenance.watermark import Candidate, Detection, detect, find

__all__ = [
    "Candidate",
    "Claim",
    "Detection",
    "binomial_tail",
    "detect",
    "find",
    "least_matches",
    "manifest",
    "signs",
    "text",
    "watermark",
]
