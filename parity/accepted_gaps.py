"""The entries that a comparison may leave out, each with its reason and where it can be seen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AcceptedGap:
    """Something that a comparison may leave out. A gap that no compared case needs fails the comparison.

    kind:       "uncalled", a module without children that no call reaches; "all zero", a tensor of zeros in both.
    case, name: name of the case, and of the module or the entry (`RUNG/SITE`); may hold * and ?.
    evidence:   where it can be seen. suite: the suite of the case.
    """

    kind: str
    case: str
    name: str
    reason: str
    evidence: str
    suite: str = "parity.medsegdiff"

    @property
    def label(self):
        """Return the name of the gap in messages."""
        return f"{self.kind}: {self.case}: {self.name}"


ACCEPTED_GAPS = (
    *(
        AcceptedGap(
            "uncalled",
            case,
            "hwm.upscale_logits_ops.[01]",
            "the original resizes all anchors to full size and uses two; these modules have a name but no parameters",
            "guided_diffusion_pt/highway.py, HighwayUNet.forward",
        )
        for case in ("forward/new*", "forward/full-size", "gradients/new*")
    ),
    AcceptedGap(
        "all zero",
        "gradients/*",
        "input gradient/input_blocks.*#0?1?",
        "a block without residual block is given the time embedding and does not use it",
        "guided_diffusion_pt/unet.py, TimestepEmbedSequential",
    ),
    *(
        AcceptedGap(
            "all zero",
            "gradients/new*",
            site,
            "the network adds the anchors without their gradient, as the original does",
            "guided_diffusion_pt/unet.py, UNetModel_newpreview.forward",
        )
        for site in (
            "output gradient/hwm#0?[01]?",
            "output gradient/hwm.upscale_logits_ops.*#0",
            "input gradient/hwm.upscale_logits_ops.*#0",
        )
    ),
)
