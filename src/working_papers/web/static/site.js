// Conveniences only: every page works without this file.
"use strict";

// "/" goes to the search box, as on many sites.
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLElement && event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const box = document.getElementById("q");
  if (!box) return;
  event.preventDefault();
  box.focus();
  box.select();
});

// A button beside each piece of code; made here, so that there is no dead button without scripts.
if (navigator.clipboard) {
  for (const block of document.querySelectorAll("pre[data-copy]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.querySelector("code").textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not allowed";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    const frame = document.createElement("div");
    frame.className = "copy-frame";
    block.replaceWith(frame);
    frame.append(block, button);
  }
}

// A vote in place, said aloud; without scripts the form does the same and comes back.
const votes = document.querySelectorAll("form[data-vote]");
if (votes.length) {
  const said = document.createElement("p");
  said.className = "hidden";
  said.setAttribute("role", "status");
  said.setAttribute("aria-live", "polite");
  document.querySelector("main").append(said);
  for (const form of votes) {
    let busy = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (busy) return;
      busy = true;
      try {
        const answer = await fetch(form.action, {
          method: "POST",
          headers: { Accept: "application/json" },
          body: new URLSearchParams(new FormData(form)),
        });
        if (!answer.ok) throw new Error(String(answer.status));
        const { votes, voted } = await answer.json();
        form.querySelector("button").setAttribute("aria-pressed", String(voted));
        form.querySelector("[data-count]").textContent = String(votes).replace(/\B(?=(\d{3})+$)/g, "\u202f");
        form.action = form.action.replace(/\/(un)?vote$/, voted ? "/unvote" : "/vote");
        said.textContent = `${voted ? "Your vote counts" : "Your vote is taken back"}. Votes: ${votes}.`;
      } catch {
        form.submit(); // the page that comes says what is wrong
      } finally {
        busy = false;
      }
    });
  }
}

// A run that goes on: its progress as it comes, and the page anew when it has ended.
const live = document.querySelector("[data-job][data-active]");
if (live && "EventSource" in window) {
  const source = new EventSource(`/runs/${live.dataset.job}/events`);
  const stage = live.querySelector("[data-stage]");
  source.addEventListener("job", (event) => {
    const job = JSON.parse(event.data);
    if (!job.active) {
      source.close();
      location.reload();
      return;
    }
    live.querySelector("[data-status]").textContent = job.status[0].toUpperCase() + job.status.slice(1);
    const progress = job.progress;
    if (!progress) return;
    stage.textContent = `: ${progress.stage}, ${progress.done} of ${progress.total} trials`;
    const flying = progress.running.reduce((sum, trial) => sum + trial.fraction, 0);
    live.querySelector("[data-bar]").value = progress.total ? (progress.done + flying) / progress.total : 0;
    live.querySelector("[data-trials]").replaceChildren(
      ...progress.running.map((trial) => {
        const row = document.createElement("li");
        const name = document.createElement("span");
        name.textContent = `${trial.arm}, seed ${trial.seed}`;
        const bar = document.createElement("progress");
        bar.max = 1;
        bar.value = trial.fraction;
        row.append(name, bar);
        return row;
      }),
    );
  });
  addEventListener("pagehide", () => source.close());
}
