"""What takes `/client.js` seconds to get over; failed assertions tell as much as those of tests."""

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{name}" for name in ("crashes", "proxies", "refusals", "slices"))
)
