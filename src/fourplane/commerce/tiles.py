"""Product pictures where there are none: a drawn tile per product, always the same for the same product.

The department chooses the drawing, the product's own colour (found in its description) paints it, and the id decides
tilt, ground and pattern. Pure; about 30 us and 2 kB a tile, so tiles are drawn when asked for and cached by browsers.
"""

# ruff: noqa: E501 - drawings are data

from hashlib import blake2b

PAINTS = {
    "black": "#2b2d33", "white": "#f4f1ea", "red": "#c8373d", "blue": "#2f66b5", "green": "#3c8a55", "yellow": "#e8b930",
    "orange": "#e07b2f", "purple": "#7a4fa3", "pink": "#e08bab", "brown": "#7d5638", "grey": "#8b919b", "beige": "#d9c6a5",
    "navy": "#26385f", "teal": "#1f8a8c", "gold": "#c9992e", "silver": "#b4bac3", "turquoise": "#2cb5b0",
    "ivory": "#efe6d0", "mauve": "#a97b9d", "caramel": "#b5763a", "khaki": "#9a8f5c", "burgundy": "#75243a",
    "olive": "#6f7437", "coral": "#ec7460", "lavender": "#a795d8", "crimson": "#b01e3c", "emerald": "#178f63",
    "charcoal": "#41464f", "cream": "#f0e4c8", "tan": "#c39a6b", "copper": "#b56a3c", "maroon": "#6b2630",
}  # fmt: skip
GROUNDS = {
    "accessories": 32, "apparel": 212, "beauty": 335, "books": 24, "electronics": 225, "floral": 105, "footwear": 18,
    "furniture": 40, "groceries": 88, "homedecor": 280, "housewares": 190, "instruments": 10, "jewelry": 255,
    "outdoors": 150, "seasonal": 355, "tools": 205, "food service": 28, "cold dispensed": 195, "salty snacks": 45,
    "hot dispensed": 15,
}  # fmt: skip
# Drawings on a 100 x 100 field: {p} paint, {d} its shadow, {l} its light.
DRAWINGS = {
    "accessories": '<path d="M36 34q0-18 14-18t14 18" fill="none" stroke="{d}" stroke-width="4"/><path d="M26 36h48q5 0 6 '
    '6l4 32q1 8-7 8H23q-8 0-7-8l4-32q1-6 6-6z" fill="{p}"/><path d="M20 52q30 18 60 0l-1-8H21z" fill="{l}"/>'
    '<rect x="44" y="53" width="12" height="10" rx="3" fill="{d}"/>',
    "apparel": '<path d="M36 20q14 10 28 0l20 12-8 18-9-4v36H33V46l-9 4-8-18z" fill="{p}"/><path d="M36 20q14 10 28 0l-3-2q-11 '
    '6-22 0z" fill="{d}"/><path d="M50 27v55" stroke="{l}" stroke-width="1.6" stroke-dasharray="2 5"/>',
    "beauty": '<rect x="40" y="14" width="20" height="18" rx="3" fill="{d}"/><path d="M36 32h28q6 8 6 16v28q0 8-8 8H38q-8 '
    '0-8-8V48q0-8 6-16z" fill="{p}"/><rect x="37" y="50" width="26" height="20" rx="3" fill="{l}"/>',
    "books": '<path d="M18 26q18-8 32 2v54q-14-10-32-2z" fill="{p}"/><path d="M82 26q-18-8-32 2v54q14-10 32-2z" fill="{l}"/>'
    '<path d="M50 28v54" stroke="{d}" stroke-width="2.5"/><path d="M57 38q9-4 18-2M57 48q9-4 18-2M57 58q9-4 18-2" stroke="{d}" '
    'stroke-width="2" fill="none" opacity=".6"/>',
    "electronics": '<path d="M22 58V48a28 28 0 0 1 56 0v10" fill="none" stroke="{p}" stroke-width="7"/><rect x="15" y="52" '
    'width="17" height="30" rx="8" fill="{d}"/><rect x="68" y="52" width="17" height="30" rx="8" fill="{d}"/>'
    '<rect x="20" y="57" width="6" height="20" rx="3" fill="{l}"/><rect x="74" y="57" width="6" height="20" rx="3" fill="{l}"/>',
    "floral": '<path d="M50 50v38M50 72q-14 0-18-12 14-2 18 12M50 78q14 0 18-12-14-2-18 12" stroke="#4c8a4d" stroke-width="4" '
    'fill="#5ea05f"/><g fill="{p}"><circle cx="50" cy="24" r="11"/><circle cx="66" cy="36" r="11"/><circle cx="60" cy="53" r="11"/>'
    '<circle cx="40" cy="53" r="11"/><circle cx="34" cy="36" r="11"/></g><circle cx="50" cy="40" r="10" fill="{l}"/>',
    "footwear": '<path d="M14 42q10 8 24-4 4 12 18 18l22 8q8 3 8 12H14q-4-18 0-34z" fill="{p}"/><path d="M12 76h74v5q0 5-5 '
    '5H17q-5 0-5-5z" fill="{d}"/><path d="M40 46l8-4M46 52l8-4M53 57l8-4" stroke="{l}" stroke-width="3.5" stroke-linecap="round"/>',
    "furniture": '<rect x="24" y="26" width="52" height="34" rx="9" fill="{p}"/><rect x="14" y="44" width="16" height="32" rx="7" '
    'fill="{d}"/><rect x="70" y="44" width="16" height="32" rx="7" fill="{d}"/><rect x="26" y="56" width="48" height="20" rx="6" '
    'fill="{l}"/><path d="M22 76v9M78 76v9" stroke="{d}" stroke-width="4"/>',
    "groceries": '<path d="M50 34q-12-10-24-1-13 13-2 36 8 16 18 15 4-1 8-3 4 2 8 3 10 1 18-15 11-23-2-36-12-9-24 1z" fill="{p}"/>'
    '<path d="M50 34q-2-12 8-20" stroke="#6b4a2b" stroke-width="4" fill="none"/><path d="M56 24q8-12 22-8-6 14-22 8z" fill="#5ea05f"/>'
    '<path d="M30 44q-6 8-2 20" stroke="{l}" stroke-width="4" fill="none" stroke-linecap="round"/>',
    "homedecor": '<path d="M36 16h28l14 34H22z" fill="{p}"/><path d="M50 50v28" stroke="{d}" stroke-width="5"/><rect x="32" y="76" '
    'width="36" height="8" rx="4" fill="{d}"/><path d="M40 20h20l8 24H32z" fill="{l}" opacity=".55"/>',
    "housewares": '<path d="M20 34h48v32q0 16-16 16H36q-16 0-16-16z" fill="{p}"/><path d="M68 42h6q10 0 10 10t-10 10h-6" '
    'fill="none" stroke="{p}" stroke-width="6"/><ellipse cx="44" cy="34" rx="24" ry="6" fill="{d}"/><path d="M36 24q-4-6 0-12M50 '
    '24q-4-6 0-12" stroke="{l}" stroke-width="3" fill="none" stroke-linecap="round"/>',
    "instruments": '<path d="M58 44l24-26 6 6-26 24" fill="{d}"/><path d="M60 42q8 8 2 16t-4 16q-10 16-30 8-16-10-6-26 4-8 14-8 '
    '6-2 8-6 8-8 16 0z" fill="{p}"/><circle cx="44" cy="60" r="9" fill="{d}"/><path d="M34 70l44-46" stroke="{l}" stroke-width="2"/>',
    "jewelry": '<circle cx="50" cy="62" r="23" fill="none" stroke="{p}" stroke-width="6"/><path d="M38 24h24l8 10-20 20-20-20z" '
    'fill="{l}"/><path d="M38 24l6 10 6-10 6 10 6-10M30 34h40M44 34l6 20 6-20" stroke="{d}" stroke-width="1.6" fill="none"/>',
    "outdoors": '<path d="M50 20l38 60H12z" fill="{p}"/><path d="M50 20l14 60H36z" fill="{d}"/><path d="M50 42l9 38H41z" '
    'fill="{l}"/><path d="M8 81h84" stroke="{d}" stroke-width="4" stroke-linecap="round"/>',
    "seasonal": '<path d="M50 12l14 20H54l16 20H58l18 22H24l18-22H30l16-20H36z" fill="{p}"/><rect x="45" y="74" width="10" '
    'height="12" fill="#7d5638"/><g fill="{l}"><circle cx="46" cy="40" r="3"/><circle cx="58" cy="50" r="3"/><circle cx="40" '
    'cy="64" r="3"/><circle cx="62" cy="67" r="3"/></g>',
    "tools": '<path d="M28 20h36q10 0 14 12l-12-2H28q-6 0-6-5t6-5z" fill="{d}"/><rect x="44" y="30" width="12" height="56" rx="5" '
    'fill="{p}"/><path d="M47 40v40" stroke="{l}" stroke-width="2.5"/>',
}  # fmt: skip
FALLBACK = (
    '<path d="M16 36l34-14 34 14v34L50 86 16 70z" fill="{p}"/><path d="M16 36l34 14 34-14M50 50v36" stroke="{d}" '
    'stroke-width="3" fill="none"/><path d="M33 29l34 14v10" stroke="{l}" stroke-width="4" fill="none"/>'
)


def tile(product_id: str, department: str, color: str = "") -> bytes:
    """The tile of a product as SVG."""
    seed = blake2b(product_id.encode(), digest_size=6).digest()
    hue = (GROUNDS.get(department, seed[0]) + seed[1] % 26 - 13) % 360
    paint = PAINTS.get(color) or f"hsl({(hue + 150 + seed[2] % 60) % 360} 46% {44 + seed[3] % 14}%)"
    drawing = DRAWINGS.get(department, FALLBACK)
    painted = (
        drawing.replace("{p}", paint)
        .replace("{d}", f"color-mix(in srgb, {paint} 70%, #000)")
        .replace("{l}", f"color-mix(in srgb, {paint} 52%, #fff)")
    )
    turn, size = seed[4] % 13 - 6, 0.8 + seed[5] % 12 / 100
    light = f"hsl({hue} 52% 92%)"
    deep = f"hsl({(hue + 24) % 360} 44% 80%)"
    rings = "".join(
        f'<circle cx="{20 + seed[1] % 60}" cy="{16 + seed[2] % 50}" r="{radius}" fill="#fff" opacity=".13"/>'
        for radius in (26, 44, 64)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" width="480" height="480">'
        f'<defs><linearGradient id="g" x1="0" y1="0" x2="1" y2="1"><stop stop-color="{light}"/>'
        f'<stop offset="1" stop-color="{deep}"/></linearGradient></defs><rect width="100" height="100" fill="url(#g)"/>'
        f'{rings}<ellipse cx="50" cy="88" rx="32" ry="4.5" fill="#000" opacity=".12"/>'
        f'<g transform="translate(50 50) rotate({turn}) scale({size:.2f}) translate(-50 -50)">{painted}</g></svg>'
    ).encode()
