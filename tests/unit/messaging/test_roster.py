"""Subscription states, two sides at once."""

from fourplane.messaging import roster
from fourplane.messaging.roster import Contact


def pair():
    return Contact("bob@b", in_roster=False), Contact("alice@a", in_roster=False)


def test_request_and_approval_make_both_sides_right():
    alices, bobs = pair()
    out = roster.outbound(alices, "subscribe")
    assert out.travels
    assert out.contact.asked
    came = roster.inbound(bobs, "subscribe", b"<presence/>")
    assert came.travels
    assert came.contact.request == b"<presence/>"
    assert not came.contact.in_roster
    granted = roster.outbound(came.contact, "subscribed")
    assert granted.shows_presence
    assert granted.contact.subscription == "from"
    done = roster.inbound(out.contact, "subscribed")
    assert done.contact.subscription == "to"
    assert not done.contact.asked


def test_repeated_request_of_a_subscriber_is_answered_without_asking():
    contact = Contact("a@b", from_=True)
    assert roster.inbound(contact, "subscribe").answer == "subscribed"
    assert not roster.inbound(contact, "subscribe").travels


def test_permission_in_advance_is_used_once():
    given = roster.outbound(Contact("a@b", in_roster=False), "subscribed")
    assert given.contact.approved
    assert not given.travels
    used = roster.inbound(given.contact, "subscribe", b"x")
    assert used.answer == "subscribed"
    assert used.contact.from_
    assert not used.contact.approved


def test_unsubscribing_hides_presence_and_tells_the_user():
    outcome = roster.inbound(Contact("a@b", to=True, from_=True), "unsubscribe")
    assert outcome.hides_presence
    assert outcome.contact.subscription == "to"


def test_approval_nobody_asked_for_changes_nothing():
    contact = Contact("a@b")
    outcome = roster.inbound(contact, "subscribed")
    assert outcome.contact == contact
    assert not outcome.travels


def test_refusing_a_request_tells_the_asker():
    outcome = roster.outbound(Contact("a@b", request=b"x", in_roster=False), "unsubscribed")
    assert outcome.travels
    assert outcome.contact.empty


def test_stored_form_is_read_back():
    contact = Contact("a@b", to=True, name="A & B", groups=("x",), version=7)
    assert roster.decode(roster.encode(contact)) == contact
    assert roster.item_element(contact) == (
        b"<item jid='a@b' subscription='to' name='A &amp; B'><group>x</group></item>"
    )
