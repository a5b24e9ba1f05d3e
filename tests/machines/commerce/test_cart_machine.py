"""Carts on three replicas: whatever happens in whatever order, they converge, lose no addition and revive no removal."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fourplane.commerce.cart import Cart, HybridClock

SKUS = st.sampled_from(["tea", "cup", "pot"])
REPLICAS = st.integers(0, 2)


@st.composite
def carts(draw: st.DrawFn) -> Cart:
    cart, clock = Cart(), HybridClock(draw(st.sampled_from("abc")))
    for number in range(draw(st.integers(0, 6))):
        sku, stamp = draw(SKUS), clock.tick(draw(st.integers(0, 5)))
        operation = draw(st.sampled_from([f"{stamp.replica}{number}", "shared"]))
        match draw(st.sampled_from(["add", "set", "remove", "code"])):
            case "add":
                cart.add(sku, draw(st.integers(1, 4)), operation=operation, stamp=stamp)
            case "set":
                cart.set(sku, draw(st.integers(0, 4)), operation=operation, stamp=stamp)
            case "remove":
                cart.remove(sku, operation=operation, stamp=stamp)
            case _:
                cart.apply_code("TEA10", on=draw(st.booleans()), stamp=stamp)
    return cart


@given(carts(), carts(), carts())
@settings(max_examples=300, deadline=None)
def test_merge_does_not_depend_on_order_grouping_or_repetition(one: Cart, two: Cart, three: Cart) -> None:
    assert one.merge(two) == two.merge(one)
    assert one.merge(two).merge(three) == one.merge(two.merge(three))
    assert one.merge(one) == one
    assert one.merge(two).merge(two) == one.merge(two)
    one.merge(two).check()


class Replicas(RuleBasedStateMachine):
    """Three copies that change apart and meet now and then, beside a model of what each has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = [Cart() for _ in range(3)]
        self.clocks = [HybridClock(name) for name in "abc"]
        self.now = 0
        self.count = 0
        self.added: dict[str, str] = {}  # operation -> sku
        self.removed: set[str] = set()  # operations that some replica saw and removed

    def _stamp(self, replica: int):
        self.now += 1
        self.count += 1
        self.clocks[replica].observe(self.copies[replica].latest())
        return self.clocks[replica].tick(self.now)

    @rule(replica=REPLICAS, sku=SKUS, quantity=st.integers(1, 5))
    def add(self, replica: int, sku: str, quantity: int) -> None:
        stamp = self._stamp(replica)
        operation = f"op{self.count}"
        before = self.copies[replica].quantities().get(sku, 0)
        assert self.copies[replica].add(sku, quantity, operation=operation, stamp=stamp)
        assert self.copies[replica].quantities()[sku] == before + quantity
        assert not self.copies[replica].add(sku, quantity, operation=operation, stamp=stamp), (
            "a repeated press counts once"
        )
        self.added[operation] = sku

    @rule(replica=REPLICAS, sku=SKUS, quantity=st.integers(0, 5))
    def set(self, replica: int, sku: str, quantity: int) -> None:
        cart = self.copies[replica]
        seen = {known for known, entry in cart.entries.items() if entry.sku == sku}
        stamp = self._stamp(replica)
        operation = f"op{self.count}"
        cart.set(sku, quantity, operation=operation, stamp=stamp)
        self.removed |= seen
        if quantity:
            self.added[operation] = sku
        assert cart.quantities().get(sku, 0) == quantity

    @rule(replica=REPLICAS, sku=SKUS)
    def remove(self, replica: int, sku: str) -> None:
        cart = self.copies[replica]
        self.removed |= {known for known, entry in cart.entries.items() if entry.sku == sku}
        cart.remove(sku, stamp=self._stamp(replica))
        assert sku not in cart.quantities()
        cart.remove(sku, stamp=self._stamp(replica))
        assert sku not in cart.quantities()

    @rule(teller=REPLICAS, hearer=REPLICAS)
    def meet(self, teller: int, hearer: int) -> None:
        self.copies[hearer] = self.copies[hearer].merge(self.copies[teller])

    @invariant()
    def every_copy_is_sound(self) -> None:
        for cart in self.copies:
            cart.check()

    def teardown(self) -> None:
        whole = self.copies[0].merge(self.copies[1]).merge(self.copies[2])
        other = self.copies[2].merge(self.copies[0]).merge(self.copies[1])
        assert whole == other, "replicas that have met agree"
        assert set(whole.entries) == set(self.added) - self.removed, "nothing added is lost, nothing removed returns"


Replicas.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestReplicas = Replicas.TestCase
