"""What is wrong with a tracking store, in one line with the remedy; user and password in the address are never repeated."""

import re
from urllib.parse import unquote, urlsplit

from tunix_lab.errors import EnvironmentProblem
from tunix_lab.lab.tracking.store import Store, impatient_requests, open_store

_LONGEST = 300
_SHORTEST_USER = 6  # a shorter user is no token, and may be a part of any text
_CREDENTIALS = (
    "give them as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, as MLFLOW_TRACKING_TOKEN, or in the address "
    "(https://USER:PASSWORD@HOST)"
)
_NO_MLFLOW = "answers, but not as an MLflow server does: open the address in a browser, MLflow's page must come, and nothing else"
# What to say by what stands in a client's error. MLflow has one class of error for all of them, so only the text can tell.
_KNOWN = {
    "NameResolutionError": "has no address: is the name of the host right, and can this machine reach its network?",
    "Failed to resolve": "has no address: is the name of the host right, and can this machine reach its network?",
    "Connection refused": "refuses the connection: is it running, and is this its port?",
    "No route to host": "cannot be reached from this machine's network",
    "SSLError": "and this machine do not agree on TLS: must the address begin with http://, or its certificate be trusted?",
    "error code 401": f"does not accept the user name and password: {_CREDENTIALS}",
    "Invalid Host header": "does not know itself by the name in the address: start it with --allowed-hosts 'NAME:*'",
    "error code 403": f"does not allow this: ask for the permission, or be another user: {_CREDENTIALS}",
    "error code 404": _NO_MLFLOW,
    "not in a valid JSON format": _NO_MLFLOW,
    "Response: {": _NO_MLFLOW,
    "timed out": "does not answer in time: it hangs or has too much to do, or something on the way drops what is sent to it",
    "error responses": "fails at the moment (5xx); its own log says why",
    "RemoteDisconnected": "closed the connection without an answer; its own log may say why",
    "Connection reset": "closed the connection without an answer; its own log may say why",
    "IncompleteRead": "closed the connection without an answer; its own log may say why",
}


def check_store(store: Store) -> None:
    """Asks the store one question, so that what is wrong with it is told once and not for every run.

    Raises:
      EnvironmentProblem: it cannot be reached or used.
    """
    import requests
    from mlflow.exceptions import MlflowException

    try:
        with impatient_requests():
            open_store(store).search_experiments(max_results=1)
    except (MlflowException, requests.RequestException, OSError) as error:
        raise EnvironmentProblem(explain(store, error)) from error


def explain(store: Store, error: Exception) -> str:
    """One line that says what `error` means for a user of `store`."""
    text = " ".join(str(error).split()) or type(error).__name__
    if store.sqlite_file is None:
        known = next((words for sign, words in _KNOWN.items() if sign in text), None)
        if known is not None:
            return f"tracking server {store.shown} {known}"
    text = without_credentials(store, text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def without_credentials(store: Store, text: str) -> str:
    """Takes out what stands before the host in the address. A token may stand there as the user, with or without a password."""
    parts = urlsplit(store.uri)
    userinfo = parts.netloc.rpartition("@")[0]
    for written in {userinfo, unquote(userinfo)} - {""}:
        text = text.replace(f"{written}@", "")
    for secret in {parts.password or "", unquote(parts.password or "")} - {""}:
        text = text.replace(secret, "***")
    for user in {parts.username or "", unquote(parts.username or "")}:
        if len(user) >= _SHORTEST_USER:
            text = re.sub(rf"(?<!\w){re.escape(user)}(?!\w)", "***", text)
    return text
