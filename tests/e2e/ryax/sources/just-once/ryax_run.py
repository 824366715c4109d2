from datetime import datetime

from ryax_execution.ryax_source_protocol import RyaxSourceProtocol


async def run(service: RyaxSourceProtocol, input_values: dict) -> None:
    await service.create_run({"at": datetime.now().isoformat()})
