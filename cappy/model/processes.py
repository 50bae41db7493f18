"""The devices and processes of a run, for scripts that look at files first: jax takes a second to import, which errors
in flags and files need not wait for, so it is imported by what is called here.
"""


def start_devices(settings):
    """devices.start_devices: all devices, of all processes where there are several."""
    from cappy.model import devices

    return devices.start_devices(settings)


def is_first_process():
    """devices.is_first_process: whether this process writes and tells."""
    from cappy.model import devices

    return devices.is_first_process()
