"""becket.EventLoopPolicy and becket.install(), each in a process of its own, since a policy is for
a whole process."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import becket

# From 3.14 on asyncio tells whoever sets a policy that policies will go.
SETTING = ("-W", "ignore::DeprecationWarning") if sys.version_info >= (3, 14) else ()


def run_python(code: str, *options: str) -> str:
    """Run Python in development mode with warnings as errors; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *options, "-c", dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_every_loop_that_asyncio_makes_is_becket_s() -> None:
    said = run_python(
        """
        import asyncio, threading
        import becket

        async def main():
            return type(asyncio.get_running_loop()).__name__

        becket.install()
        print(asyncio.run(main()))
        with asyncio.Runner() as runner:
            print(runner.run(main()))
        loop = asyncio.new_event_loop()
        print(loop.run_until_complete(main()))
        loop.close()
        thread = threading.Thread(target=lambda: print(asyncio.run(main())))
        thread.start()
        thread.join()
        print(becket.run(main()))
        """,
        *SETTING,
    )
    assert said == "EventLoop\n" * 5


def test_a_policy_can_be_set_and_taken_back() -> None:
    said = run_python(
        """
        import asyncio
        import becket

        async def main():
            return isinstance(asyncio.get_running_loop(), becket.EventLoop)

        asyncio.set_event_loop_policy(becket.EventLoopPolicy())
        print(isinstance(asyncio.get_event_loop_policy(), becket.EventLoopPolicy))
        print(asyncio.run(main()))
        asyncio.set_event_loop_policy(None)
        print(asyncio.run(main()))
        """,
        *SETTING,
    )
    assert said == "True\nTrue\nFalse\n"


def test_each_thread_has_a_loop_of_its_own() -> None:
    """As under asyncio's policy: one that was set is had again, and only in its thread."""
    said = run_python(
        """
        import asyncio, threading
        import becket

        becket.install()
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        print(asyncio.get_event_loop() is loop, isinstance(loop, becket.EventLoop))

        def other():
            try:
                asyncio.get_event_loop()
            except RuntimeError as error:
                print(str(error).startswith("There is no current event loop in thread"))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        asyncio.set_event_loop(None)
        loop.close()
        """,
        *SETTING,
    )
    assert said == "True True\nTrue\n"


def test_a_child_process_can_be_run() -> None:
    said = run_python(
        """
        import asyncio, sys
        import becket

        async def main():
            assert isinstance(asyncio.get_running_loop(), becket.EventLoop)
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "print('hello')", stdout=asyncio.subprocess.PIPE
            )
            said, _ = await child.communicate()
            print(said.decode().strip(), child.returncode)

        becket.install()
        asyncio.run(main())
        """,
        *SETTING,
    )
    assert said == "hello 0\n"


def test_importing_becket_touches_no_policy() -> None:
    """What is deprecated is loaded by whoever asks for it, and by nobody else."""
    said = run_python(
        """
        import sys
        import becket

        print("becket.policy" in sys.modules)
        becket.EventLoopPolicy
        print("becket.policy" in sys.modules)
        try:
            becket.none
        except AttributeError as error:
            print(error)
        """
    )
    assert said == "False\nTrue\nmodule 'becket' has no attribute 'none'\n"


def test_the_names_are_found() -> None:
    assert becket.install.__module__ == becket.EventLoopPolicy.__module__ == "becket.policy"
    assert {"EventLoopPolicy", "install"} <= set(dir(becket)) | set(becket.__all__)
