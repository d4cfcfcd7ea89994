"""Which CI job this is, and whether the code that it runs is merged."""

from __future__ import annotations

import pytest

from pytest_tokenpower.core.jobs import current_job

GITHUB = {"GITHUB_ACTIONS": "true", "GITHUB_EVENT_NAME": "push", "GITHUB_REF": "refs/heads/main"}


@pytest.mark.parametrize(
    ("environment", "merged"),
    [
        (GITHUB, True),
        (GITHUB | {"GITHUB_EVENT_NAME": "schedule"}, True),
        (GITHUB | {"GITHUB_EVENT_NAME": "pull_request"}, False),
        (GITHUB | {"GITHUB_EVENT_NAME": "pull_request_target"}, False),
        (GITHUB | {"GITHUB_EVENT_NAME": "workflow_dispatch", "GITHUB_REF": "refs/pull/1/merge"}, False),
        (GITHUB | {"GITHUB_EVENT_NAME": "merge_group"}, False),
        (GITHUB | {"GITHUB_REF": "refs/heads/gh-readonly-queue/main/pr-1-abc"}, False),
        ({"GITLAB_CI": "true", "CI_PIPELINE_SOURCE": "push"}, True),
        ({"GITLAB_CI": "true", "CI_MERGE_REQUEST_IID": "3"}, False),
        ({"GITLAB_CI": "true", "CI_EXTERNAL_PULL_REQUEST_IID": "3"}, False),
        ({"BUILDKITE": "true", "BUILDKITE_PULL_REQUEST": "false"}, True),
        ({"BUILDKITE": "true", "BUILDKITE_PULL_REQUEST": "12"}, False),
        ({"JENKINS_URL": "http://ci", "BUILD_TAG": "jenkins-a-1"}, True),
        ({"JENKINS_URL": "http://ci", "BUILD_TAG": "jenkins-a-1", "CHANGE_ID": "5"}, False),
        ({"JENKINS_URL": "http://ci", "BUILD_TAG": "jenkins-a-1", "ghprbPullId": "5"}, False),
        ({"TF_BUILD": "True"}, True),
        ({"TF_BUILD": "True", "SYSTEM_PULLREQUEST_PULLREQUESTID": "5"}, False),
        ({"CIRCLECI": "true", "CIRCLE_PULL_REQUEST": "https://github.com/o/a/pull/5"}, False),
        ({"BITBUCKET_BUILD_NUMBER": "7", "BITBUCKET_PR_ID": "5"}, False),
    ],
)
def test_code_that_is_not_merged(environment: dict[str, str], merged: bool) -> None:
    job = current_job(environment)
    assert job is not None
    assert (not job.change) is merged


def test_no_job_without_a_service() -> None:
    assert current_job({"CI": "true", "GITLAB_CI": "false"}) is None


def test_what_anybody_may_start_is_about_a_commit() -> None:
    comment = GITHUB | {"GITHUB_EVENT_NAME": "issue_comment", "GITHUB_SHA": "a" * 40}
    assert current_job(comment).commit == "a" * 40  # type: ignore[union-attr]
    assert current_job(GITHUB | {"GITHUB_SHA": "a" * 40}).commit == ""  # type: ignore[union-attr]
