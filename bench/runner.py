"""What the engine costs a node, and what a rerun executes: a chain of 300 nodes that do nothing."""

from _measure import cpu_seconds, package, row

likeness = package()

from likeness.engine.execution import Executor  # noqa: E402
from likeness.engine.graph import validate  # noqa: E402

NODES = 300


class Nothing:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"
    CATEGORY = "bench"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("INT", {"default": 0})}}

    def run(self, value):
        return (value + 1,)


def main():
    known = {"Nothing": Nothing}
    prompt = {"0": {"class_type": "Nothing", "inputs": {"value": 0}}}
    for n in range(1, NODES):
        prompt[str(n)] = {"class_type": "Nothing", "inputs": {"value": [str(n - 1), 0]}}

    executor = Executor(known)

    def go():
        return executor.run(prompt, validate(prompt, known).outputs)

    def fresh():
        executor.forget()
        go()

    cold = cpu_seconds(fresh, rounds=9)
    warm = cpu_seconds(go, rounds=9)
    row("runner: a node of a fresh run", cold / NODES * 1e3, "ms", target="< 1 ms")
    row("runner: a node of a cached rerun", warm / NODES * 1e3, "ms", target="")
    row("runner: nodes executed in a cached rerun", len(go().executed), "nodes", target="0")


if __name__ == "__main__":
    main()
