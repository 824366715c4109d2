import asyncio
from itertools import count


async def run(service, input_values):
    for tick in count(1):
        await service.create_run({"tick": tick})
        await asyncio.sleep(input_values["period"])
