"""Which node a viewer is sent to."""

from fourplane.edge.steering import CdnNode, Viewer, isp_of, preference

NODES = [
    CdnNode("US", "us"),
    CdnNode("EU", "eu"),
    CdnNode("ASIA", "asia"),
    CdnNode("ISP1", "us", "isp1"),
    CdnNode("ISP2", "eu", "isp2"),
]
FAR = {("us", "eu"): 6.0, ("eu", "us"): 6.0, ("us", "asia"): 10.0, ("eu", "asia"): 9.0}


def order(region, isp="", nodes=NODES):
    return preference(Viewer("v", region, isp), nodes, FAR)


def test_the_own_isp_comes_first_then_the_region_then_by_distance():
    assert order("us", "isp1") == ["ISP1", "US", "EU", "ASIA", "ISP2"]
    assert order("eu")[:3] == ["EU", "US", "ASIA"]


def test_foreign_isp_caches_come_last():
    assert set(order("us")[-2:]) == {"ISP1", "ISP2"}


def test_a_sick_node_is_only_used_when_nothing_else_is_left():
    sick = [CdnNode("US", "us", healthy=False), *NODES[1:3]]
    assert order("us", nodes=sick) == ["EU", "ASIA", "US"]
    full = [CdnNode("US", "us", load=0.99), *NODES[1:3]]
    assert order("us", nodes=full)[0] == "EU"


def test_equal_nodes_share_viewers():
    twins = [CdnNode("A", "us"), CdnNode("B", "us")]
    first = [preference(Viewer(str(number), "us"), twins, FAR)[0] for number in range(400)]
    assert 120 < first.count("A") < 280
    assert first[0] == preference(Viewer("0", "us"), twins, FAR)[0]


def test_an_isp_is_known_by_its_longest_prefix():
    prefixes = {"ISP1": ("203.0.113.0/24", "2001:db8::/32"), "ISP2": ("203.0.113.128/25",)}
    assert isp_of("203.0.113.7", prefixes) == "ISP1"
    assert isp_of("203.0.113.200", prefixes) == "ISP2"
    assert isp_of("2001:db8::1", prefixes) == "ISP1"
    assert isp_of("198.51.100.1", prefixes) == ""
    assert isp_of("local", prefixes) == ""
