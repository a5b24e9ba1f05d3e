"""What pages may load, by the hosts of the deployment."""

from fourplane.edge.replies import content_security


def sources(policy, name):
    return next(part.split()[1:] for part in policy.split("; ") if part.startswith(name))


def test_pages_load_media_from_the_configured_hosts_on_their_other_ports():
    policy = content_security(("Shop.example.org", "localhost", "[::1]"))
    for name in ("media-src", "connect-src"):
        assert "https://shop.example.org:*" in sources(policy, name)
        assert "http://localhost:*" in sources(policy, name)
    assert sources(policy, "script-src") == ["'self'"]


def test_a_host_that_is_none_adds_nothing():
    assert content_security(("a; script-src *", "b c", "x\r\ny")) == content_security()


def test_all_hosts_are_said_as_all_hosts():
    assert sources(content_security(("*",)), "media-src") == ["'self'", "blob:", "http:", "https:"]
