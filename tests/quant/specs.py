"""Any spec, for property tests."""

from hypothesis import strategies as st

from dq.quant.numerics.spec import QuantSpec


@st.composite
def specs(draw: st.DrawFn, *, channel_axis: int | None = None) -> QuantSpec:
    signed, symmetric = draw(st.booleans()), draw(st.booleans())
    return QuantSpec(
        bits=draw(st.integers(2, 16)),
        signed=signed,
        symmetric=symmetric,
        power_of_two=draw(st.booleans()),
        narrow=draw(st.booleans()) and (signed or not symmetric),
        channel_axis=channel_axis,
    )
