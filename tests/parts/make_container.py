"""Makes a container: make_container.py URL CONTAINER ACCOUNT KEY; the URL ends with the account. Exits with 1 if the server
refuses."""

import base64
import email.utils
import hashlib
import hmac
import sys
import urllib.error
import urllib.request

url, container, account, key = sys.argv[1:]
date = email.utils.formatdate(usegmt=True)
version = "2021-08-06"
# Of the headers that count, eleven are not sent.
signed = "PUT" + "\n" * 12
signed += f"x-ms-date:{date}\nx-ms-version:{version}\n/{account}/{account}/{container}\nrestype:container"
signature = base64.b64encode(hmac.new(base64.b64decode(key), signed.encode(), hashlib.sha256).digest()).decode()
headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {account}:{signature}"}
request = urllib.request.Request(f"{url}/{container}?restype=container", method="PUT", headers=headers)
try:
    urllib.request.urlopen(request, timeout=30).close()
except (urllib.error.URLError, OSError) as error:
    sys.exit(f"{error}")
