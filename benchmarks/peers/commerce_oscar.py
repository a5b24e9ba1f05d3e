"""django-oscar as a peer: its own shop from PyPI on PostgreSQL, guest checkouts, and a race for ten pieces.

A project as Oscar's "getting started" describes it: one product class, one partner, one
product with much stock and one with ten pieces, one shipping country, guest checkout allowed, e-mail switched off; CSRF tokens
and debugging are off, which only helps it. Served by gunicorn with two sync workers. A checkout is five requests of one
session: put into the basket, e-mail, address, shipping method, place the order; no payment, no promotion, no tax, because a
plain Oscar has none. In the race every buyer has the piece in the basket before all order at once.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from peers import postgres

PACKAGES = ("django-oscar==4.2.1", "psycopg[binary]", "gunicorn", "sorl-thumbnail", "pillow")
WORKERS = 2

SETTINGS = """
import os
from oscar.defaults import *
SECRET_KEY = "bench"
DEBUG = False
ALLOWED_HOSTS = ["*"]
SITE_ID = 1
ROOT_URLCONF = "peershop.urls"
OSCAR = "oscar.apps."
INSTALLED_APPS = [
    "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
    "django.contrib.messages", "django.contrib.staticfiles", "django.contrib.sites", "django.contrib.flatpages",
    "oscar.config.Shop",
    *(OSCAR + name for name in (
        "analytics.apps.AnalyticsConfig", "checkout.apps.CheckoutConfig", "address.apps.AddressConfig",
        "shipping.apps.ShippingConfig", "catalogue.apps.CatalogueConfig",
        "catalogue.reviews.apps.CatalogueReviewsConfig", "communication.apps.CommunicationConfig",
        "partner.apps.PartnerConfig", "basket.apps.BasketConfig", "payment.apps.PaymentConfig",
        "offer.apps.OfferConfig", "order.apps.OrderConfig", "customer.apps.CustomerConfig",
        "search.apps.SearchConfig", "voucher.apps.VoucherConfig", "wishlists.apps.WishlistsConfig",
        "dashboard.apps.DashboardConfig", "dashboard.reports.apps.ReportsDashboardConfig",
        "dashboard.users.apps.UsersDashboardConfig", "dashboard.orders.apps.OrdersDashboardConfig",
        "dashboard.catalogue.apps.CatalogueDashboardConfig", "dashboard.offers.apps.OffersDashboardConfig",
        "dashboard.partners.apps.PartnersDashboardConfig", "dashboard.pages.apps.PagesDashboardConfig",
        "dashboard.ranges.apps.RangesDashboardConfig", "dashboard.reviews.apps.ReviewsDashboardConfig",
        "dashboard.vouchers.apps.VouchersDashboardConfig",
        "dashboard.communications.apps.CommunicationsDashboardConfig",
        "dashboard.shipping.apps.ShippingDashboardConfig",
    )),
    "widget_tweaks", "haystack", "treebeard", "sorl.thumbnail", "django_tables2",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware", "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware", "django.contrib.messages.middleware.MessageMiddleware",
    "oscar.apps.basket.middleware.BasketMiddleware",
    "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
]
AUTHENTICATION_BACKENDS = ("oscar.apps.customer.auth_backends.EmailBackend", "django.contrib.auth.backends.ModelBackend")
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages", "django.template.context_processors.static",
        "django.template.context_processors.media", "django.template.context_processors.i18n",
        OSCAR + "search.context_processors.search_form", OSCAR + "checkout.context_processors.checkout",
        OSCAR + "communication.notifications.context_processors.notifications",
        "oscar.core.context_processors.metadata",
    ]},
}]
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
DATABASES = {"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "shop", "HOST": "127.0.0.1",
    "PORT": os.environ["SHOP_DB_PORT"], "ATOMIC_REQUESTS": True, "CONN_MAX_AGE": 600,
}}
STATIC_URL, MEDIA_URL = "/static/", "/media/"
STATIC_ROOT, MEDIA_ROOT = "static", "media"
USE_TZ, TIME_ZONE, LANGUAGE_CODE = True, "UTC", "en-gb"
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
OSCAR_ALLOW_ANON_CHECKOUT = True
OSCAR_DEFAULT_CURRENCY = "EUR"
OSCAR_INITIAL_ORDER_STATUS = "Pending"
OSCAR_ORDER_STATUS_PIPELINE = {"Pending": ("Cancelled",), "Cancelled": ()}
LOGGING_CONFIG = None
"""
URLS = """
from django.apps import apps
from django.urls import include, path
urlpatterns = [path("i18n/", include("django.conf.urls.i18n")), path("", include(apps.get_app_config("oscar").urls[0]))]
"""
FILL = """
import django, json
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from oscar.core.loading import get_model
Country, Partner = get_model("address", "Country"), get_model("partner", "Partner")
Product, Class = get_model("catalogue", "Product"), get_model("catalogue", "ProductClass")
Record = get_model("partner", "StockRecord")
Country.objects.get_or_create(iso_3166_1_a2="GB", defaults=dict(
    iso_3166_1_a3="GBR", iso_3166_1_numeric="826", printable_name="United Kingdom", name="United Kingdom",
    is_shipping_country=True))
kind, _ = Class.objects.get_or_create(name="things", defaults=dict(requires_shipping=True, track_stock=True))
partner, _ = Partner.objects.get_or_create(name="store", code="store")
made = {}
for title, count in (("plenty", 10_000_000), ("rare", 10)):
    product = Product.objects.create(title=title, slug=title, product_class=kind)
    Record.objects.create(product=product, partner=partner, partner_sku=title, price="10.00", price_currency="EUR",
                          num_in_stock=count)
    made[title] = product.pk
print(json.dumps(made))
"""
SOLD = """
import django, json
django.setup()
from oscar.core.loading import get_model
print(json.dumps(get_model("order", "Line").objects.filter(title="rare").count()))
"""


class Session:
    """One buyer: a kept connection and its cookies."""

    def __init__(self, port):
        self.port = port
        self.cookies = {}
        self.reader = self.writer = None

    async def ask(self, method, path, fields=None):
        """The status and where it leads."""
        body = urlencode(fields or {}).encode()
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nCookie: {cookies}\r\n"
        head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        top = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        for line in top[1:]:
            name, _, value = line.partition(": ")
            if name.lower() == "set-cookie":
                cookie, _, content = value.partition(";")[0].partition("=")
                self.cookies[cookie] = content
        where = next((line.partition(": ")[2] for line in top if line.lower().startswith("location")), "")
        return int(top[0].split()[1]) if top[0] else 0, where


ADDRESS = {
    "first_name": "Ada", "last_name": "Vale", "line1": "12 Harbour Road", "line4": "London", "postcode": "N1 9GU",
    "phone_number": "",
}  # fmt: skip


async def ready_to_order(port, product):
    """A session with the product in its basket and everything but the order done."""
    buyer = Session(port)
    await buyer.ask("POST", f"/basket/add/{product}/", {"quantity": 1})
    await buyer.ask("POST", "/checkout/", {"username": "ada@example.org", "options": "anonymous"})
    await buyer.ask("POST", "/checkout/shipping-address/", ADDRESS)
    await buyer.ask("GET", "/checkout/shipping-method/")
    return buyer


async def order(buyer):
    status, where = await buyer.ask("POST", "/checkout/preview/", {"action": "place_order"})
    return status == 302 and "thank-you" in where


async def checkouts(port, product, seconds, count):
    """How many whole checkouts per second, and how long the last step takes."""
    done, late = 0, []
    ends = time.perf_counter() + seconds

    async def visitor():
        nonlocal done
        while time.perf_counter() < ends:
            buyer = await ready_to_order(port, product)
            began = time.perf_counter()
            if await order(buyer):
                done += 1
                late.append((time.perf_counter() - began) * 1e3)

    began = time.perf_counter()
    await asyncio.gather(*(visitor() for _ in range(count)))
    late.sort()
    took = time.perf_counter() - began
    return {
        "count": done,
        "checkouts/s": done / took,
        "p50 ms": late[len(late) // 2] if late else 0.0,
        "p99 ms": late[int(len(late) * 0.99)] if late else 0.0,
    }


async def race(port, product, count):
    buyers = [await ready_to_order(port, product)]  # the first alone: its counters do not bear several first ones
    buyers += await asyncio.gather(*(ready_to_order(port, product) for _ in range(count - 1)))
    return sum(await asyncio.gather(*(order(buyer) for buyer in buyers)))


class Prepared(NamedTuple):
    """An installed Oscar: its interpreter, a filled database as SQL, and what is in it."""

    python: str
    database: Path
    products: dict


def project(root):
    """Oscar's settings, addresses and application."""
    folder = root / "peershop"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text("")
    (folder / "settings.py").write_text(SETTINGS)
    (folder / "urls.py").write_text(URLS)
    application = "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n"
    (folder / "wsgi.py").write_text(application)


def environment(root, database):
    return os.environ | {
        "DJANGO_SETTINGS_MODULE": "peershop.settings",
        "SHOP_DB_PORT": str(database.port),
        "PYTHONPATH": str(root),
    }


def run(python, root, database, code):
    """A script inside the shop; its last line as JSON."""
    argv = [python, "-c", code]
    inside = {"env": environment(root, database), "cwd": root, "capture_output": True, "text": True, "timeout": 400}
    done = subprocess.run(argv, check=False, **inside)
    if done.returncode:
        raise postgres.CannotRun(f"the shop does not run: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def prepare(folder):
    """Install Oscar and fill a shop, once per `folder`: a minute of pip and one of migrations, more on a busy machine."""
    root = Path(folder) / PACKAGES[0].replace("==", "-")
    kept = Prepared(os.environ.get("FOURPLANE_OSCAR", str(root / "env" / "bin" / "python")), root / "shop.sql", {})
    if not Path(kept.python).exists():
        print(f"installing {PACKAGES[0]} (once)", file=sys.stderr, flush=True)
        venv.create(root / "env", with_pip=True)
        install = [kept.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES]
        done = subprocess.run(install, check=False, capture_output=True, text=True, timeout=400)
        if done.returncode:
            shutil.rmtree(root / "env")
            raise postgres.CannotRun(f"pip could not install django-oscar: {done.stderr.strip()[-200:]}")
    facts = root / "shop.json"
    if not facts.exists():
        print("filling its database (once)", file=sys.stderr, flush=True)
        project(root)
        with postgres.running() as database:
            products = run(kept.python, root, database, FILL)
            postgres.dump(database, kept.database)
        facts.write_text(json.dumps(products))
    return kept._replace(products=json.loads(facts.read_text()))


class Shop:
    """A running Oscar."""

    def __init__(self, prepared, root, database, process, port):
        self.products, self.pid, self.port = prepared.products, process.pid, port
        self._prepared, self._root, self._database = prepared, root, database

    def checkouts(self, seconds, count):
        """As many as fit, from so many buyers at a time."""
        return asyncio.run(checkouts(self.port, self.products["plenty"], seconds, count))

    def race(self, count):
        """How many pieces of ten are sold to so many at once."""
        asyncio.run(race(self.port, self.products["rare"], count))
        return run(self._prepared.python, self._root, self._database, SOLD)


@contextlib.contextmanager
def serving(prepared, database):
    """The shop on this PostgreSQL under gunicorn, as long as the block; it is still starting."""
    postgres.restore(database, prepared.database)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        project(root)
        port = postgres.free_port()
        where = ["-b", f"127.0.0.1:{port}", "--log-level", "error", "peershop.wsgi"]
        argv = [prepared.python, "-m", "gunicorn", "-w", str(WORKERS), *where]
        said = (root / "server.log").open("wb")
        server = subprocess.Popen(argv, env=environment(root, database), cwd=root, stdout=said, stderr=said)
        try:
            yield Shop(prepared, root, database, server, port)
        finally:
            server.terminate()
            server.wait(30)
            said.close()
