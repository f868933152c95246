"""Ask this container's /healthz and print its sentence; exit 1 unless all is well.

``healthcheck.py PORT``; in the image, so that it needs no curl.
"""

import sys
from http.client import HTTPConnection, HTTPException


def main(port: int) -> int:
    """The exit code that Docker wants: 0 healthy, 1 not."""
    connection = HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        print(response.read(500).decode(errors="replace").strip())
    except (OSError, HTTPException) as error:
        print(f"nobody answers on port {port}: {error}")
        return 1
    return 0 if response.status == 200 else 1


sys.exit(main(int(sys.argv[1])))
