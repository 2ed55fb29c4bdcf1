"""What launch/ says can be followed: files exist, settings are taken, nobody listens unasked."""

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import venv
from pathlib import Path

import dockerfiles
import pytest
import yaml

from evoid_jax import commandline, config

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
DOCKERFILES = {"train": LAUNCH / "Dockerfile", "sidecars": LAUNCH / "Dockerfile.sidecars"}
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
# A setting's name in a shell's line or a YAML list, up to the end of its value.
FLAG = re.compile(r"--config(?:\.[\w.]+)?=(?:\"[^\"]*\"|[^\s\"'\\]+)")
INSTALL = {"train": {"ACCELERATOR": "tpu"}, "sidecars": {}}  # build arguments of the slow test
TOKEN = "0123456789abcdef"
SECRET = ("EVOID_JAX_SIDECAR_TOKEN", "OPENAI_API_KEY", "VLLM_API_KEY", "TRUSTED_NETWORK")
IMPORTS = {"train": "jax, libtpu, evoid_jax.train", "sidecars": "torch, evoid_jax.sidecars.serve"}


def compose() -> dict:
    return yaml.safe_load((LAUNCH / "compose.yaml").read_text())


def kubernetes(name: str) -> list[dict]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def pods(document: dict) -> list[dict]:
    """Return every list of containers inside of a Kubernetes object, flattened."""
    found = []
    for key, value in document.items():
        if key == "containers":
            found += value
        for inner in value if isinstance(value, list) else [value]:
            found += pods(inner) if isinstance(inner, dict) else []
    return found


def filled(text: str) -> str:
    """Return a shell's or compose's text with variables at their defaults, or a stand-in."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return re.sub(r"\$\{\w+:\?[^}]*\}", "given", text)


def accepted(flags: list[str]) -> config.Config:
    """Return the settings that these flags give; raises where one does not exist."""
    values, rest = commandline.configure(flags)
    assert not rest
    return config.from_dict(values.to_dict())


# --- images


def test_what_the_paper_set_imports_of_the_judges_client_is_in_its_requirements():
    """They are installed where nothing else of requirements.txt is."""
    listed = "".join(
        (ROOT / f"requirements-{name}.txt").read_text() for name in ("paper", "sidecars")
    )
    for file in (ROOT / "evoid_jax" / "rewards").glob("judge*.py"):
        wanted = re.findall(
            r"^(?:import|from) (httpx2|tenacity|openai|tokenizers)", file.read_text(), re.M
        )
        assert all(re.search(rf"^{name}", listed, re.M) for name in wanted), (file, wanted)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_copies_what_there_is_before_it_uses_it(name):
    image = dockerfiles.read(DOCKERFILES[name])
    there: set[str] = set()
    for step in image.steps:
        if step.word == "COPY":
            sources, _ = dockerfiles.copied(dockerfiles.Image({}, [step]))[0]
            for source in sources:
                matching = list(ROOT.glob(source))
                assert matching, source
                there |= {path.name for path in matching}
        for file in re.findall(r"-r \"?([\w.-]+\.txt)", step.rest):
            assert file in there
        if "--editable ." in step.rest:
            assert {"setup.py", "pyproject.toml", "configs", "evoid_jax"} <= there
            named = re.findall(r"requirements\(\"([\w.-]+)\"\)", (ROOT / "setup.py").read_text())
            assert set(named) <= there  # setup.py reads them
    assert image.steps[0].word == "FROM"
    assert image.of("WORKDIR") == ["/evoid_jax"]


def test_the_training_image_is_for_gpus_or_tpus():
    install = lambda **given: " ".join(dockerfiles.read(DOCKERFILES["train"], **given).of("RUN"))
    assert '"jax[cuda12]"' in install()
    assert '"jax[tpu]"' in install(ACCELERATOR="tpu")
    with pytest.raises(KeyError):
        install(ACCELERATE="tpu")


def test_what_is_not_sent_to_a_build_is_not_copied_by_one():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for file in DOCKERFILES.values():
        for sources, _ in dockerfiles.copied(dockerfiles.read(file)):
            assert not set(sources) & set(ignored)


@pytest.mark.parametrize(
    "file", [*DOCKERFILES.values(), *sorted(LAUNCH.glob("*.yaml")), *SCRIPTS], ids=lambda f: f.name
)
def test_modules_that_are_run_exist(file):
    for module in dockerfiles.modules(file.read_text()):
        assert importlib.util.find_spec(module), module


def test_the_parser_of_these_tests_sees_what_it_should():
    assert dockerfiles.modules('ENTRYPOINT ["python", "-m", "evoid_jax.sidecars.serve"]')
    assert dockerfiles.modules("- -m\n      - evoid_jax.train\n") == {"evoid_jax.train"}
    assert dockerfiles.modules("python -m evoid_jax.train --x") == {"evoid_jax.train"}
    image = dockerfiles.read(DOCKERFILES["sidecars"], REQUIREMENTS="other.txt")
    (run,) = [rest for rest in image.of("RUN") if "-r" in rest]
    assert run.endswith('--extra-index-url "https://pypi.org/simple" -r "other.txt"')
    assert any("urlopen" in rest for rest in image.of("HEALTHCHECK"))


# --- one machine


def test_compose_builds_these_images_and_starts_a_real_run():
    services = compose()["services"]
    assert set(services) == {"train", "sidecars", "judge"}
    for name, file in DOCKERFILES.items():
        build = services[name]["build"]
        context = (LAUNCH / build["context"]).resolve()
        assert (context, context / build["dockerfile"]) == (ROOT, file)
        args = {name: filled(value) for name, value in build.get("args", {}).items()}
        dockerfiles.read(file, **args)
    flags = [filled(word) for word in services["train"]["command"] if "--config" in word]
    cfg = accepted(flags)
    assert cfg.model == "Wan-AI/Wan2.1-VACE-14B-diffusers" and cfg.data.dir == "/data"
    # The folder names its own splits, as evoid_jax.prepare writes it.
    assert cfg.data.heldout == 0 == cfg.data.validation
    # Addresses are services of this file, at the ports where they listen.
    ports = dict(re.findall(r"http://(\w+):(\d+)", " ".join(flags)))
    assert set(ports) == {"sidecars", "judge"} == set(services["train"]["depends_on"])
    assert f"--port={ports['judge']}" in services["judge"]["command"]
    (entry,) = dockerfiles.read(DOCKERFILES["sidecars"]).of("ENTRYPOINT")
    assert f'"--port={ports["sidecars"]}"' in entry
    assert dockerfiles.read(DOCKERFILES["sidecars"]).of("EXPOSE") == [ports["sidecars"]]


def test_compose_publishes_nothing_and_shares_no_gpu():
    services = compose()["services"]
    assert not [name for name, service in services.items() if "ports" in service]
    of = lambda service: service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
    used = [gpu for service in services.values() for gpu in of(service)]
    assert len(used) == len(set(used))


def test_weights_are_mounted_where_the_image_looks_for_them():
    image = dockerfiles.read(DOCKERFILES["sidecars"])
    variables = dict(word.split("=", 1) for rest in image.of("ENV") for word in rest.split())
    target = compose()["services"]["sidecars"]["volumes"][0].split(":")[-2]
    for name in ("EVOID_JAX_OPEN", "EVOID_JAX_PAPER"):
        assert Path(variables[name]).parent == Path(target)


def secret_of(variables: list[dict]) -> dict[str, str]:
    """Return which key of the cluster's secret each environment variable has."""
    return {
        one["name"]: one["valueFrom"]["secretKeyRef"]["key"]
        for one in variables
        if "secretKeyRef" in one.get("valueFrom", {})
    }


def test_what_listens_for_others_asks_for_what_the_run_sends():
    """Sidecars and judge in containers; each secret comes from the environment on both sides."""
    (entry,) = dockerfiles.read(DOCKERFILES["sidecars"]).of("ENTRYPOINT")
    assert '"--host=0.0.0.0"' in entry and '"--token-env=EVOID_JAX_SIDECAR_TOKEN"' in entry
    services = {name: service["environment"] for name, service in compose()["services"].items()}
    sent, asked = services["train"], services["sidecars"] | services["judge"]
    assert sent["EVOID_JAX_SIDECAR_TOKEN"] == asked["EVOID_JAX_SIDECAR_TOKEN"]
    assert sent["OPENAI_API_KEY"] == asked["VLLM_API_KEY"]
    assert all(":?" in value for values in services.values() for value in values.values())
    (jobset,), scorers = kubernetes("gke-jobset.yaml"), kubernetes("gke-rewards.yaml")
    (train,) = pods(jobset)
    sent = secret_of(train["env"])
    asked = secret_of([one for document in scorers for pod in pods(document) for one in pod["env"]])
    assert sent["EVOID_JAX_SIDECAR_TOKEN"] == asked["EVOID_JAX_SIDECAR_TOKEN"]
    assert sent["OPENAI_API_KEY"] == asked["VLLM_API_KEY"] != sent["EVOID_JAX_SIDECAR_TOKEN"]


# --- clusters


def test_gke_starts_a_real_run_and_what_scores_it():
    (jobset,), scorers = kubernetes("gke-jobset.yaml"), kubernetes("gke-rewards.yaml")
    (train,) = pods(jobset)
    flags = [word for word in train["command"] if word.startswith("--config")]
    cfg = accepted(flags)
    assert cfg.model == "Wan-AI/Wan2.1-VACE-14B-diffusers" and cfg.data.dir
    named = {document["metadata"]["name"]: document for document in scorers}
    replicas, service = named["scorer"], named["rewards"]
    (port,) = service["spec"]["ports"]
    assert replicas["spec"]["serviceName"] == "rewards"
    assert cfg.reward.sidecars == tuple(
        f"http://scorer-{i}.rewards:{port['port']}" for i in range(replicas["spec"]["replicas"])
    )
    assert cfg.reward.judge == f"http://judge:{named['judge']['spec']['ports'][0]['port']}/v1"
    for document in scorers:
        labels = document["spec"]["selector"]
        labels = labels.get("matchLabels", labels)
        assert labels["app"] in ("evoid-rewards", "evoid-judge")
    images = {container["image"].split("/")[-1].split(":")[0] for container in pods(replicas)}
    assert images == {compose()["services"]["sidecars"]["image"]}
    assert train["image"].split("/")[-1].split(":")[0] == compose()["services"]["train"]["image"]
    assert train["workingDir"] == "/evoid_jax"


@pytest.mark.parametrize("name", ["slurm.sh", "tpu-vm.sh"])
def test_a_cluster_script_starts_a_real_run(name, tmp_path):
    text = (LAUNCH / name).read_text()
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    flags = [filled(flag).replace('"', "") for flag in FLAG.findall(code)]
    cfg = accepted(flags)
    assert cfg.model == "Wan-AI/Wan2.1-VACE-14B-diffusers" and cfg.data.dir == "given"
    command = ["bash", LAUNCH / name, "a", "b", "c"]
    needs = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert needs.returncode != 0 and "DATA" in needs.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_a_script_is_sound_shell_and_may_be_run(script):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert script.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(("script", "program"), [("judge.sh", "vllm"), ("slurm.sh", "srun")])
def test_a_script_calls_its_program_with_these_words(script, program, tmp_path):
    """A stand-in for the program writes down what it was called with."""
    stand_in = tmp_path / program
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    bare = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JUDGE_HOST", "IMAGE", *SECRET)
    }

    def call(**variables):
        env = bare | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DATA": "/faces"} | variables
        command = ["bash", LAUNCH / script, str(tmp_path / "first"), "second"]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    if program == "srun":
        assert "container" not in call() and "--config.data.dir=/faces" in call()
        inside = call(IMAGE="evoid_jax", MOUNTS="/a:/a")
        assert "--container-image=evoid_jax --container-mounts=/a:/a" in inside
    else:  # loopback unless it is told otherwise, as the sidecars
        assert 'host="${SIDECAR_HOST:-127.0.0.1}"' in (LAUNCH / "sidecar.sh").read_text()
        assert "--host 127.0.0.1" in call()
        open_to_all = {"JUDGE_HOST": "0.0.0.0"}
        assert "--host 0.0.0.0" in call(**open_to_all, VLLM_API_KEY=TOKEN)
        assert TOKEN not in call(**open_to_all, VLLM_API_KEY=TOKEN)  # vLLM reads it by itself
        assert "--host 0.0.0.0" in call(**open_to_all, TRUSTED_NETWORK="1")
        with pytest.raises(subprocess.CalledProcessError) as caught:
            call(**open_to_all)
        assert "VLLM_API_KEY" in caught.value.stderr


# --- the install lines, run


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_install_lines_of_an_image_make_an_environment_that_works(name, tmp_path):
    """Every RUN with pip, in order, in a copy of what the image holds, with a fresh Python."""
    image = dockerfiles.read(DOCKERFILES[name], **INSTALL[name])
    place, env_folder = tmp_path / "image", tmp_path / "env"
    place.mkdir()
    venv.create(env_folder, with_pip=True)
    env = os.environ | {"PATH": f"{env_folder / 'bin'}:{os.environ['PATH']}"}
    env |= {"VIRTUAL_ENV": str(env_folder)}
    env.pop("PYTHONPATH", None)
    for step in image.steps:
        if step.word == "COPY":
            ((sources, target),) = dockerfiles.copied(dockerfiles.Image({}, [step]))
            for path in [path for source in sources for path in ROOT.glob(source)]:
                to = place / path.name if target == "./" else place / target
                leave = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, to, ignore=leave) if path.is_dir() else shutil.copy(path, to)
        if step.word == "RUN" and step.rest.startswith("pip "):
            done = subprocess.run(["bash", "-c", step.rest], cwd=place, env=env)
            assert done.returncode == 0, step.rest
    code = f"import {IMPORTS[name]}, sys; print(evoid_jax.__file__)"
    done = subprocess.run(
        [env_folder / "bin" / "python", "-c", code],
        cwd=tmp_path,
        env=env | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(place / "evoid_jax" / "__init__.py")
