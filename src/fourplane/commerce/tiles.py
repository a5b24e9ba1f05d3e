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
    "watch": '<rect x="40" y="8" width="20" height="84" rx="6" fill="{d}"/><circle cx="50" cy="50" r="25" fill="{p}"/><circle cx="50" cy="50" '
    'r="19" fill="{l}"/><path d="M50 38v13l9 6" stroke="{d}" stroke-width="3.5" fill="none" stroke-linecap="round"/><rect x="74" y="46" width="6" height="8" rx="2" fill="{d}"/>',
    "glasses": '<circle cx="30" cy="54" r="18" fill="{d}"/><circle cx="70" cy="54" r="18" fill="{d}"/><path d="M46 50q4-5 8 0M12 50q-2-14 8-16M88 50q2-14-8-16" '
    'stroke="{p}" stroke-width="5" fill="none"/><path d="M19 50q5-9 13-8M59 50q5-9 13-8" stroke="{l}" stroke-width="3.5" fill="none" stroke-linecap="round"/>',
    "belt": '<path d="M10 44h80v16H10z" fill="{p}"/><rect x="30" y="36" width="30" height="32" rx="6" fill="none" stroke="#c9a648" stroke-width="6"/>'
    '<path d="M45 52h20" stroke="#c9a648" stroke-width="5"/><g fill="{d}"><circle cx="70" cy="52" r="2"/><circle cx="77" cy="52" r="2"/><circle cx="84" cy="52" r="2"/></g>',
    "backpack": '<path d="M40 22q0-10 10-10t10 10" fill="none" stroke="{d}" stroke-width="4"/><rect x="26" y="20" width="48" height="66" rx="18" fill="{p}"/>'
    '<rect x="33" y="54" width="34" height="24" rx="7" fill="{d}"/><path d="M34 40h32" stroke="{l}" stroke-width="4" stroke-linecap="round"/><path d="M44 64h12" stroke="{l}" stroke-width="3"/>',
    "jacket": '<path d="M36 16l14 8 14-8 18 12 4 44-12 3-3-32v43H29V43l-3 32-12-3 4-44z" fill="{p}"/><path d="M50 24v62" stroke="{d}" stroke-width="2.5"/>'
    '<path d="M36 16l8 22 6-14 6 14 8-22-14 8z" fill="{l}"/><path d="M34 60h8M58 60h8" stroke="{d}" stroke-width="3"/>',
    "scarf": '<path d="M26 26q24-16 48 0 4 12-6 16-18 8-36 0-10-4-6-16z" fill="{p}"/><path d="M40 40l16 2 4 44H38z" fill="{d}"/><path d="M39 72h20M40 62h19" stroke="{l}" stroke-width="4"/>'
    '<path d="M40 86v5M46 86v5M52 86v5M58 86v5" stroke="{d}" stroke-width="2.5"/>',
    "socks": '<path d="M34 12h22v38l18 14q8 8-1 16-8 6-16 1L38 66q-5-4-4-10z" fill="{p}"/><path d="M34 12h22v10H34z" fill="{l}"/><path d="M34 32h22M34 40h22" stroke="{d}" stroke-width="3"/>'
    '<path d="M60 86q8 2 14-5 6-8 0-15z" fill="{d}"/>',
    "camera": '<path d="M36 26l5-8h18l5 8" fill="{d}"/><rect x="14" y="26" width="72" height="52" rx="9" fill="{p}"/><circle cx="50" cy="52" r="19" fill="{d}"/><circle cx="50" cy="52" r="12" fill="{l}"/>'
    '<circle cx="46" cy="48" r="4" fill="#fff" opacity=".8"/><rect x="70" y="32" width="10" height="6" rx="2" fill="{l}"/>',
    "speaker": '<rect x="28" y="12" width="44" height="76" rx="10" fill="{p}"/><circle cx="50" cy="60" r="16" fill="{d}"/><circle cx="50" cy="60" r="7" fill="{l}"/><circle cx="50" cy="29" r="8" fill="{d}"/><circle cx="50" cy="29" r="3" fill="{l}"/>',
    "television": '<rect x="10" y="20" width="80" height="50" rx="5" fill="{d}"/><rect x="14" y="24" width="72" height="42" rx="2" fill="{p}"/><path d="M14 58l22-18 16 12 14-10 20 16v8H14z" fill="{l}"/><path d="M36 82h28M50 70v12" stroke="{d}" stroke-width="5"/>',
    "boot": '<path d="M34 12h26v36q14 4 22 12 6 6 6 16H34z" fill="{p}"/><path d="M32 76h56v7q0 5-5 5H37q-5 0-5-5z" fill="{d}"/><path d="M34 12h26v9H34z" fill="{l}"/><path d="M58 30h-12M58 39h-12M60 48l-12 3" stroke="{l}" stroke-width="3.5" stroke-linecap="round"/>',
    "sandals": '<path d="M12 62q20-8 40-2t36 6q4 10-6 12-40 6-66-2-10-4-4-14z" fill="{d}"/><path d="M28 60q4-26 22-26 12 8 18 30" fill="none" stroke="{p}" stroke-width="9"/><path d="M50 36q12-6 26 26" fill="none" stroke="{l}" stroke-width="6"/>',
    "tables": '<rect x="10" y="36" width="80" height="11" rx="4" fill="{p}"/><path d="M20 47l-4 38M80 47l4 38M34 47v26M66 47v26" stroke="{d}" stroke-width="6" stroke-linecap="round"/><rect x="16" y="38" width="66" height="3" rx="1" fill="{l}"/>',
    "dressers": '<rect x="16" y="22" width="68" height="58" rx="5" fill="{p}"/><path d="M18 42h64M18 61h64M50 24v54" stroke="{d}" stroke-width="2.5"/><g fill="{l}"><circle cx="33" cy="33" r="3"/><circle cx="67" cy="33" r="3"/><circle cx="33" cy="52" r="3"/><circle cx="67" cy="52" r="3"/><circle cx="33" cy="70" r="3"/><circle cx="67" cy="70" r="3"/></g><path d="M24 80v8M76 80v8" stroke="{d}" stroke-width="5"/>',
    "clock": '<circle cx="50" cy="50" r="36" fill="{p}"/><circle cx="50" cy="50" r="29" fill="{l}"/><path d="M50 30v21l14 9" stroke="{d}" stroke-width="4.5" fill="none" stroke-linecap="round"/><circle cx="50" cy="50" r="3.5" fill="{d}"/>',
    "bowls": '<path d="M12 46h76q-2 34-38 36-36-2-38-36z" fill="{p}"/><ellipse cx="50" cy="46" rx="38" ry="9" fill="{d}"/><path d="M24 60q6 12 18 15" stroke="{l}" stroke-width="4" fill="none" stroke-linecap="round"/><path d="M38 82h24v6H38z" fill="{d}"/>',
    "keys": '<rect x="10" y="30" width="80" height="44" rx="6" fill="{p}"/><rect x="16" y="44" width="68" height="26" fill="#faf7f0"/><path d="M26 44v26M36 44v26M46 44v26M56 44v26M66 44v26M76 44v26" stroke="#bbb" stroke-width="1.2"/><path d="M23 44h6v15h-6zM33 44h6v15h-6zM53 44h6v15h-6zM63 44h6v15h-6zM73 44h6v15h-6z" fill="#26282d"/><path d="M18 37h20" stroke="{l}" stroke-width="3"/>',
    "percussion": '<path d="M20 38h60v36q-30 16-60 0z" fill="{p}"/><ellipse cx="50" cy="38" rx="30" ry="10" fill="{l}"/><path d="M20 50l12 26M44 46l-12 30M44 46l12 34M68 76L56 46M80 50L68 76" stroke="{d}" stroke-width="2"/><path d="M30 10l22 24M76 12L58 34" stroke="#8a5a32" stroke-width="4.5" stroke-linecap="round"/>',
    "plant": '<path d="M34 62h32l-5 26H39z" fill="{p}"/><path d="M50 62q-2-24-24-28 0 24 24 28zM50 62q2-30 24-40 4 30-24 40zM50 62q-8-22 0-46 10 24 0 46z" fill="#5b9c5c"/><path d="M50 62V26M50 60q-8-14-20-22M50 60q6-18 18-30" stroke="#3c7440" stroke-width="1.8" fill="none"/><path d="M33 62h34v6H33z" fill="{d}"/>',
    "halloween": '<path d="M50 26q30-10 36 24-2 34-36 34T14 50q6-34 36-24z" fill="#e07b2f"/><path d="M50 26q-10 28 0 58M30 28q-8 28 4 52M70 28q8 28-4 52" stroke="#b95a1c" stroke-width="2.5" fill="none"/><path d="M50 26q0-10 8-14" stroke="#4c7a3c" stroke-width="6" fill="none"/><path d="M30 48l10-9 5 11zM70 48l-10-9-5 11zM28 60q22 18 44 0l-7 12-7-6-8 8-8-8-7 6z" fill="#3b2213"/>',
    "valentine": '<path d="M50 84Q8 56 16 32q10-20 34 0 24-20 34 0 8 24-34 52z" fill="#c8373d"/><path d="M26 36q4-9 13-7" stroke="#f3a9ac" stroke-width="5" fill="none" stroke-linecap="round"/>',
    "easter": '<path d="M50 12q28 26 28 48 0 26-28 26T22 60q0-22 28-48z" fill="{p}"/><path d="M24 54l9-7 8 7 9-7 9 7 8-7 9 7M26 70q24 10 48 0" stroke="{l}" stroke-width="4.5" fill="none"/>',
    "tools": '<path d="M28 20h36q10 0 14 12l-12-2H28q-6 0-6-5t6-5z" fill="{d}"/><rect x="44" y="30" width="12" height="56" rx="5" '
    'fill="{p}"/><path d="M47 40v40" stroke="{l}" stroke-width="2.5"/>',
}  # fmt: skip
FALLBACK = (
    '<path d="M16 36l34-14 34 14v34L50 86 16 70z" fill="{p}"/><path d="M16 36l34 14 34-14M50 50v36" stroke="{d}" '
    'stroke-width="3" fill="none"/><path d="M33 29l34 14v10" stroke="{l}" stroke-width="4" fill="none"/>'
)


def tile(product_id: str, department: str, style: str = "", color: str = "") -> bytes:
    """The tile of a product as SVG."""
    seed = blake2b(product_id.encode(), digest_size=6).digest()
    hue = (GROUNDS.get(department, seed[0]) + seed[1] % 26 - 13) % 360
    paint = PAINTS.get(color) or f"hsl({(hue + 150 + seed[2] % 60) % 360} 46% {44 + seed[3] % 14}%)"
    drawing = DRAWINGS.get(style) or DRAWINGS.get(department, FALLBACK)
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
