"""The CI job that this process runs in, as the service's environment variables tell it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One attempt of one job. ``change`` names the unmerged change whose code it runs; empty for merged code."""

    name: str
    change: str = ""


def current_job(environment: Mapping[str, str] = os.environ) -> Job | None:
    """Return the job of GitHub Actions, GitLab CI, Buildkite or Jenkins; None elsewhere."""

    def joined(service: str, *names: str) -> str:
        return "/".join([service, *(environment.get(name) or "?" for name in names)])

    if environment.get("GITHUB_ACTIONS") == "true":
        event, ref = environment.get("GITHUB_EVENT_NAME", ""), environment.get("GITHUB_REF", "")
        unmerged = event.startswith("pull_request") or ref.startswith("refs/pull/")
        return Job(
            joined("github", "GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "GITHUB_JOB"),
            f"a pull request ({ref or event})" if unmerged else "",
        )
    if environment.get("GITLAB_CI"):
        number = environment.get("CI_MERGE_REQUEST_IID", "")
        unmerged = bool(number) or environment.get("CI_PIPELINE_SOURCE") == "merge_request_event"
        return Job(
            joined("gitlab", "CI_PROJECT_PATH", "CI_JOB_ID"), f"merge request !{number}" if unmerged else ""
        )
    if environment.get("BUILDKITE") == "true":
        number = environment.get("BUILDKITE_PULL_REQUEST", "false")
        return Job(
            joined("buildkite", "BUILDKITE_ORGANIZATION_SLUG", "BUILDKITE_PIPELINE_SLUG", "BUILDKITE_JOB_ID"),
            "" if number in {"", "false"} else f"pull request {number}",
        )
    if environment.get("JENKINS_URL") and environment.get("BUILD_TAG"):
        number = environment.get("CHANGE_ID", "")
        return Job(joined("jenkins", "BUILD_TAG"), f"change {number}" if number else "")
    return None
