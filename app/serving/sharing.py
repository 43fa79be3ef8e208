"""Several replicas, one registry: what is wired where there is an origin."""

from app.adapters.intake import Intake
from app.adapters.registry import AdapterRegistry
from app.adapters.shelving import AdapterGoods
from app.serving.warming import Warming
from app.settings import Settings
from app.templates.registry import TemplateRegistry
from app.templates.shelving import TemplateGoods
from app.versions.location import origin_folder
from app.versions.origin.blobs import Blobs
from app.versions.origin.following import Followed, Follower
from app.versions.origin.origin import Origin
from app.versions.origin.shelf import Shelf


def follower_of(
    settings: Settings,
    adapters: AdapterRegistry,
    intake: Intake,
    templates: TemplateRegistry,
    warming: Warming,
) -> Follower | None:
    """Have both registries share their names through the origin, if there is one.

    Raises:
        StartError: it cannot be used.
    """
    if settings.origin is None:
        return None
    origin = Origin(Blobs(settings.origin), origin_folder(settings))
    adapters.names.shelf = Shelf(
        origin,
        "adapters",
        adapters.names.store,
        AdapterGoods(intake, settings.max_adapter_bytes),
    )
    templates.names.shelf = Shelf(
        origin, "templates", templates.names.store, TemplateGoods(templates)
    )

    async def nothing(name: str) -> None:
        """What is served is loaded already."""

    families = [Followed(adapters.names, nothing), Followed(templates.names, warming.warm)]
    return Follower(origin, families)
