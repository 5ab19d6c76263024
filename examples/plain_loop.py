"""A loop of your own: a small network on handwritten digits, watched while it trains.

`KernelTracker` is all that is needed. It measures, and leaves model and random numbers as they
were; when to look, and where numbers go, is the loop's business.

    python examples/plain_loop.py
"""

import argparse
from pathlib import Path

import torch
from pictures import panels, save
from sklearn.datasets import load_digits
from torch import nn

from ntkwatch import History, KernelTracker, ProbeBatch, judge, training_of
from ntkwatch.report.html import render_html
from ntkwatch.watch.store import RunFiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs, for a first look")
    parser.add_argument("--out", type=Path, default=Path("plain-loop"), help="folder for the run")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    options = parser.parse_args()

    torch.manual_seed(0)
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)
    train, held_out = slice(0, 1500), slice(1500, None)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model.append(nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_function = nn.CrossEntropyLoss()

    # The probe: images that kernels are compared on. 32 do for a verdict; more make it steadier.
    tracker = KernelTracker(ProbeBatch(x[held_out][:64], y[held_out][:64]))
    facts = training_of(optimizer, loss_function=loss_function, batch_size=50)

    step, steps = 0, 30 * (4 if options.quick else 20)
    while step <= steps:
        for batch in torch.randperm(1500).split(50):
            loss = loss_function(model(x[train][batch]), y[train][batch])
            # At 0, 1, 2, 4, 8 and so on, since most happens early, and at ten even places. The
            # first look is the reference, so it comes before the first update.
            if (step & (step - 1)) == 0 or step % (steps // 10) == 0:
                seen = tracker.observe(model, step, loss=loss.item(), training=facts)
                error, angle = seen.linearization_error, seen.kernel_angle
                print(
                    f"step {step:4d}   loss {loss.item():6.4f}   kernel angle {angle:5.3f} rad   "
                    f"linearization error {'   -' if error is None else format(error, '4.2f')}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step > steps:
                break

    accuracy = (model(x[held_out]).argmax(dim=1) == y[held_out]).float().mean()
    verdict = judge(tracker.history)
    print(f"\naccuracy {accuracy:.1%}   verdict: {verdict.label}\n{verdict.reason}")

    # The files of a run: `ntkwatch report plain-loop` reads the history, a browser the page.
    files = RunFiles(options.out)
    files.rewrite(tracker.history)
    files.write_text("report.html", render_html(tracker.history, verdict, title="plain loop"))
    print(f"See {options.out / 'report.html'}")
    if options.picture:
        draw(options.picture, tracker.history)


def draw(place: Path, history: History) -> None:
    figure, (left, right) = panels(2)
    steps = [seen.step + 1 for seen in history]  # from 1 on, for the logarithm
    left.plot(steps, [seen.loss for seen in history], marker=".", color="#33475b")
    left.set(xscale="log", yscale="log", xlabel="step + 1", ylabel="training loss")
    right.axhspan(0, 0.13, color="#dce9f5", label="lazy")
    right.axhspan(0.32, 1.1, color="#fbe9d9", label="feature-learning")
    errors = [seen.linearization_error for seen in history]
    right.plot(steps, errors, marker=".", color="#c2571a")
    right.set(xscale="log", xlabel="step + 1", ylabel="linearization error", ylim=(0, 1.1))
    right.legend(loc="lower right")
    save(figure, place)


if __name__ == "__main__":
    main()
