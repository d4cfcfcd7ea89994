"""The CI job that this process runs in, as the service's environment variables tell it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Job:
    """One attempt of one job. ``change`` names the unmerged change whose code it runs; empty for merged code.

    ``commit`` is the one that the job is about where anybody may have started it, and it may have checked out another;
    empty where that needs no asking.
    """

    name: str
    change: str = ""
    commit: str = ""


class _Service(NamedTuple):
    """How a service is known, what names a job, and what is set in the job of a change that is not merged."""

    name: str
    mark: str
    job: tuple[str, ...]
    change: tuple[str, ...]


_SERVICES = (
    _Service(
        "gitlab",
        "GITLAB_CI",
        ("CI_PROJECT_PATH", "CI_JOB_ID"),
        ("CI_MERGE_REQUEST_IID", "CI_EXTERNAL_PULL_REQUEST_IID"),
    ),
    _Service(
        "buildkite",
        "BUILDKITE",
        ("BUILDKITE_ORGANIZATION_SLUG", "BUILDKITE_PIPELINE_SLUG", "BUILDKITE_JOB_ID"),
        ("BUILDKITE_PULL_REQUEST",),
    ),
    _Service("jenkins", "JENKINS_URL", ("BUILD_TAG",), ("CHANGE_ID", "ghprbPullId", "gitlabMergeRequestIid")),
    _Service(
        "azure",
        "TF_BUILD",
        ("SYSTEM_TEAMPROJECT", "BUILD_BUILDID", "SYSTEM_JOBID"),
        ("SYSTEM_PULLREQUEST_PULLREQUESTID",),
    ),
    _Service("circleci", "CIRCLECI", ("CIRCLE_WORKFLOW_JOB_ID",), ("CIRCLE_PULL_REQUEST",)),
    _Service(
        "bitbucket",
        "BITBUCKET_BUILD_NUMBER",
        ("BITBUCKET_REPO_FULL_NAME", "BITBUCKET_STEP_UUID"),
        ("BITBUCKET_PR_ID",),
    ),
)

_UNSET = frozenset({"", "false"})

_BY_ANYBODY = frozenset({"issue_comment", "issues", "discussion", "discussion_comment", "workflow_run"})
"""GitHub's events that run trusted workflows at the default branch, and whose jobs may check out a change's code."""


def current_job(environment: Mapping[str, str] = os.environ) -> Job | None:
    """Return the job of a CI service that is known here; None elsewhere."""

    def joined(service: str, *names: str) -> str:
        return "/".join([service, *(environment.get(name) or "?" for name in names)])

    if environment.get("GITHUB_ACTIONS") == "true":
        event, ref = environment.get("GITHUB_EVENT_NAME", ""), environment.get("GITHUB_REF", "")
        change = ""
        if event.startswith("pull_request") or ref.startswith("refs/pull/"):
            change = f"a pull request ({ref or event})"
        elif event == "merge_group" or ref.startswith("refs/heads/gh-readonly-queue/"):
            change = f"a merge queue ({ref or event})"
        return Job(
            joined("github", "GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "GITHUB_JOB"),
            change,
            environment.get("GITHUB_SHA", "") if event in _BY_ANYBODY else "",
        )
    for service in _SERVICES:
        if environment.get(service.mark, "") not in _UNSET:
            numbers = (environment.get(name, "") for name in service.change)
            number = next((number for number in numbers if number not in _UNSET), "")
            return Job(joined(service.name, *service.job), f"change {number}" if number else "")
    return None
