"""A shop to start with: sizes and stock for a plain product list, or a whole catalog out of words.

The generated catalog is the same on every machine: names are drawn from word lists by a generator seeded with the product's
number, prices follow the department, stock is small for expensive things. `enriched` gives clothes and shoes their sizes, so
that a list without options becomes a shop with variants.
"""

# ruff: noqa: E501 - word lists are data

from collections.abc import Mapping
from hashlib import blake2b

SIZES = {"apparel": "XS S M L XL", "footwear": "38 39 40 41 42 43 44"}
NO_SIZE = {"scarf"}
DEPARTMENTS: dict[str, tuple[tuple[int, int], dict[str, str]]] = {
    "accessories": ((1_900, 24_900), {"backpack": "Daypack Rucksack", "watch": "Chronograph Timepiece", "belt": "Belt",
                                      "handbag": "Tote Clutch Satchel", "glasses": "Sunglasses"}),
    "apparel": ((1_500, 18_900), {"jacket": "Parka Blazer Anorak", "shirt": "Shirt Blouse Tee", "scarf": "Scarf", "socks": "Socks"}),
    "beauty": ((600, 8_900), {"bathing": "Soap Bath-Salts Body-Oil", "grooming": "Brush Shaving-Set Balm"}),
    "books": ((900, 3_900), {"cooking": "Cookbook", "travel": "Travel-Guide Atlas"}),
    "electronics": ((1_900, 149_900), {"camera": "Camera", "headphones": "Headphones Earbuds", "speaker": "Speaker",
                                       "keyboard": "Keyboard"}),
    "floral": ((1_200, 9_900), {"bouquet": "Bouquet", "plant": "Fern Succulent Monstera", "wreath": "Wreath"}),
    "footwear": ((3_900, 22_900), {"boot": "Boots", "formal": "Loafers Oxfords", "sandals": "Sandals", "sneaker": "Sneakers"}),
    "furniture": ((6_900, 189_900), {"chairs": "Armchair Stool", "tables": "Table Desk", "sofas": "Sofa", "dressers": "Sideboard"}),
    "groceries": ((150, 2_900), {"bakery": "Sourdough Rye-Loaf", "fruits": "Apples Pears Figs", "vegetables": "Carrots Kale",
                                 "dairy": "Cheese Yoghurt"}),
    "homedecor": ((1_500, 29_900), {"lighting": "Lamp Lantern", "cushion": "Cushion", "clock": "Wall-Clock", "decorative": "Vase"}),
    "housewares": ((900, 15_900), {"kitchen": "Pan Kettle Knife-Block", "bowls": "Bowl Plate-Set"}),
    "instruments": ((4_900, 299_900), {"strings": "Guitar Ukulele Violin", "keys": "Keyboard-Piano", "percussion": "Drum Cajon"}),
    "jewelry": ((2_900, 99_900), {"necklace": "Necklace Pendant", "bracelet": "Bracelet", "earrings": "Earrings"}),
    "outdoors": ((1_900, 59_900), {"camping": "Tent Sleeping-Bag Stove", "fishing": "Rod Reel", "kayaking": "Kayak Paddle"}),
    "tools": ((900, 24_900), {"hammer": "Hammer", "saw": "Handsaw", "drill": "Cordless-Drill", "wrench": "Wrench-Set"}),
}  # fmt: skip
TONES = "Quiet Northern Harbor Everyday Coastal Heritage Nimble Golden-Hour Alpine Studio Meadow Urban Classic Juniper Lantern".split()
COLORS = "black white red blue green brown grey beige navy teal gold silver olive coral lavender charcoal cream burgundy".split()
MATTER = {
    "apparel": "wool cotton linen", "footwear": "leather suede canvas", "furniture": "oak walnut ash", "jewelry": "silver gold brass",
    "homedecor": "ceramic brass linen", "housewares": "steel copper stoneware", "accessories": "leather canvas wool",
    "tools": "steel hickory", "instruments": "spruce maple rosewood",
}  # fmt: skip
PRAISE = (
    "made to be used every day and to look better for it",
    "finished by hand and checked twice before it leaves the workshop",
    "a dependable choice that asks for nothing and lasts for years",
    "light enough to carry anywhere, sturdy enough to stay",
    "designed around one idea and free of everything else",
)


def enriched(row: Mapping[str, object]) -> dict[str, object]:
    """A row with the sizes its category is sold in, and enough stock to share among them."""
    sizes = SIZES.get(str(row.get("category")), "")
    if not sizes or row.get("style") in NO_SIZE or row.get("sizes"):
        return dict(row)
    stock = row.get("current_stock", 0)
    count = len(sizes.split())
    return {**row, "sizes": sizes, "current_stock": stock * count if isinstance(stock, int) else stock}


def generated_rows(count: int) -> list[dict[str, object]]:
    """`count` believable products, always the same ones."""
    names: set[str] = set()
    rows: list[dict[str, object]] = []
    number = 0
    while len(rows) < count and number < count * 20:
        row = _row(number)
        number += 1
        if str(row["name"]) not in names:
            names.add(str(row["name"]))
            rows.append(enriched(row))
    return rows


def _row(number: int) -> dict[str, object]:
    dice = blake2b(number.to_bytes(8, "big"), digest_size=16).digest()
    department = list(DEPARTMENTS)[dice[0] % len(DEPARTMENTS)]
    (least, most), styles = DEPARTMENTS[department]
    style = list(styles)[dice[1] % len(styles)]
    noun = _pick(styles[style].split(), dice[2])
    tone, color = _pick(TONES, dice[3]), _pick(COLORS, dice[4])
    matter = _pick(MATTER.get(department, "").split() or [""], dice[5])
    share = (dice[6] * 256 + dice[7]) / 65_535
    price = int(least * (most / least) ** share) // 100 * 100 + 99
    words = [tone, color.capitalize(), matter.capitalize(), noun]
    what = " ".join(part for part in (color, matter, noun.replace("-", " ").lower()) if part)
    return {
        "id": f"generated-{number}",
        "name": " ".join(word.replace("-", " ") for word in words if word),
        "category": department,
        "style": style,
        "description": f"A {what}, {_pick(list(PRAISE), dice[8])}. Part of the {tone.replace('-', ' ')} line.",
        "price": f"{price / 100:.2f}",
        "current_stock": 6 + dice[9] % 60 if price < 50_000 else 2 + dice[9] % 8,
        "promoted": dice[10] < 50,
        "featured": dice[11] < 6,
        "weight_g": 200 + dice[12] * 20,
        "popularity": (dice[13] * 256 + dice[14]) * 1_000 // 65_536,
    }


def _pick(words: list[str], dice: int) -> str:
    return words[dice % len(words)]
