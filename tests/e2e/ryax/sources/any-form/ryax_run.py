from ryax_wrapper import RyaxSourceProtocol


async def run(service: RyaxSourceProtocol, input_values):
    definitions = service.get_output_definitions()
    if not definitions:
        await service.create_run_error()
