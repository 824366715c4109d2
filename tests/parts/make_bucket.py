"""Makes a bucket: make_bucket.py URL BUCKET ACCESS_KEY SECRET_KEY. Exits with 1 if the server refuses."""

import base64
import email.utils
import hashlib
import hmac
import sys
import urllib.error
import urllib.request

url, bucket, access_key, secret_key = sys.argv[1:]
date = email.utils.formatdate(usegmt=True)
signed = f"PUT\n\n\n{date}\n/{bucket}".encode()
signature = base64.b64encode(hmac.new(secret_key.encode(), signed, hashlib.sha1).digest()).decode()
headers = {"Date": date, "Authorization": f"AWS {access_key}:{signature}"}
request = urllib.request.Request(f"{url}/{bucket}", method="PUT", headers=headers)
try:
    urllib.request.urlopen(request, timeout=30).close()
except (urllib.error.URLError, OSError) as error:
    sys.exit(f"{error}")
