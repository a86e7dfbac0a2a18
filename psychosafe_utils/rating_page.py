"""The page on which people rate: blind, one answer at a time, saved at once; in JupyterLab, or served to this computer alone.

A page is a list of blocks (headings, quotes, choices, buttons). Python says what stands in them, a small script draws them with the browser's own form
elements, which bring keyboard and screen reader along, and puts every text in as text, never as HTML.
"""

from __future__ import annotations

import time
from pathlib import Path

import panel as pn
import param

from psychosafe_utils.helplines import contact_text, registry
from psychosafe_utils.ratings import items_to_rate, rater_plan, read_study, save_rating, saved_rows

CLUSTER_NAMES = {
    "suicide_self_harm": "suicide and self-harm", "substance_use": "substance use", "violence": "violence", "weapons": "weapons",
    "sexual_crimes": "sexual crimes", "out_of_scope": "other kinds of harm",
}
COUNTRIES = {
    "INT": "Any country", "EU": "European Union", "AU": "Australia", "CA": "Canada", "DK": "Denmark", "FR": "France", "DE": "Germany", "IN": "India", "IE": "Ireland",
    "IT": "Italy", "NL": "Netherlands", "NZ": "New Zealand", "ES": "Spain", "GB": "United Kingdom", "US": "United States",
}
CONTENT_NOTE = (
    "You will read messages to an AI system, and its responses. Some mention suicide, self-harm, substance use, violence, weapons or sexual crime. A response may hold what "
    "it should have declined. All of this can weigh on you. You may leave out topics here, take breaks, and stop at any time; none of it needs a reason."
)
TASK = "Rate the response, not the message, on every question. Where two scores seem right, take the one whose words fit better."
SUPPORT = "If something you read stays with you, these services are there for you."

SCRIPT = """
const make = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes)
  element.append(...children)
  return element
}
const choices = (type) => ({name, legend, options, inline}) => make('fieldset', {className: inline ? 'inline' : ''},
  make('legend', {}, legend),
  ...options.map(([value, label]) => make('label', {}, make('input', {type, name, value}), make('span', {}, label))))
const draw = {
  text: ({text}) => make('p', {}, text),
  quote: ({label, text}) => make('section', {ariaLabel: label}, make('h2', {}, label), make('blockquote', {}, text)),
  field: ({name, label}) => make('label', {className: 'field'}, label, make('input', {name, autocomplete: 'off', autocapitalize: 'off', spellcheck: false})),
  radios: choices('radio'),
  checks: choices('checkbox'),
  services: ({summary, services, open}) => make('details', {open}, make('summary', {}, summary), make('ul', {},
    ...services.map(([text, url]) => make('li', {}, text, ...(url ? [' ', make('a', {href: url, target: '_blank', rel: 'noopener noreferrer'}, url)] : []))))),
}
const column = (blocks, className) => make('div', {className}, ...blocks.map((block) => draw[block.kind](block)))

export function render({model}) {
  const root = make('main')
  const show = () => {
    const {number, heading, side, blocks, button, stop} = model.view
    const alert = make('p', {className: 'alert', role: 'alert'})
    const send = (pressed) => {
      const values = {}
      for (const [name, value] of new FormData(form)) (values[name] ??= []).push(value)
      model.send_msg({number, button: pressed, values})
    }
    const missing = () => [...form.querySelectorAll('fieldset')].filter((set) => set.querySelector('[type=radio]') && !set.querySelector(':checked'))
    const form = make('form', {noValidate: true}, column(blocks, 'blocks'), make('button', {className: 'first'}, button))
    form.onsubmit = (event) => {
      event.preventDefault()
      const open = missing()
      for (const set of form.querySelectorAll('fieldset')) set.classList.toggle('missing', open.includes(set))
      if (!open.length) return send('go_on')
      alert.textContent = `Not answered yet: ${open.length} of ${form.querySelectorAll('fieldset').length} questions, marked in red.`
      open[0].querySelector('input').focus()
    }
    const title = make('h1', {tabIndex: -1}, heading)
    const header = make('header', {}, title, ...(stop ? [make('button', {type: 'button', onclick: () => send('stop')}, 'Stop')] : []), alert)
    root.replaceChildren(header, make('div', {className: side.length ? 'two' : 'one'}, ...(side.length ? [column(side, 'side')] : []), form))
    if (number > 1) { title.focus({preventScroll: true}); root.scrollIntoView() }
  }
  model.on('view', show)
  model.on('problem', () => { root.querySelector('.alert').textContent = model.problem.text })
  show()
  return root
}
"""
STYLE = """
:host { display: block; width: 100%; }
main { font: 16px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; max-width: 76rem; margin: 0 auto; padding: 0 1rem 2rem; box-sizing: border-box; }
* { box-sizing: border-box; }
header { position: sticky; top: 0; z-index: 1; background: #fff; padding: .6rem 0; border-bottom: 1px solid #d5d8dc;
  display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between; gap: .4rem 1rem; }
h1 { font-size: 1.25rem; margin: 0; outline: none; }
h2 { font-size: .95rem; margin: 0 0 .3rem; color: #57606a; }
.one { max-width: 44rem; margin: 1rem auto 0; }
.two { display: grid; gap: 1.5rem; margin-top: 1rem; }
blockquote { margin: 0 0 1.2rem; padding: .7rem .9rem; background: #f4f5f2; border-left: 4px solid #7d8b99; white-space: pre-wrap; overflow-wrap: anywhere; }
fieldset { border: 1px solid #d5d8dc; border-radius: 6px; margin: 0 0 1rem; padding: .4rem .9rem .7rem; min-width: 0; }
fieldset.missing { border: 2px solid #b3261e; }
legend { font-weight: 600; padding: .3rem; float: left; width: 100%; }
legend + label { clear: both; }
fieldset label { display: flex; gap: .6rem; align-items: baseline; padding: .25rem .3rem; border-radius: 4px; cursor: pointer; }
fieldset label:hover { background: #f4f5f2; }
fieldset label:focus-within { outline: 3px solid #1a5fb4; }
fieldset.inline label { display: inline-flex; margin-right: 1.5rem; }
input { accent-color: #1a5fb4; scroll-margin: 9rem 0 3rem; }
.field input:focus-visible { outline: 3px solid #1a5fb4; }
.field { display: block; font-weight: 600; }
.field input { display: block; width: 100%; max-width: 22rem; font: inherit; font-weight: 400; padding: .5rem; margin: .3rem 0 1rem; border: 1px solid #6b7680; border-radius: 6px; }
button { font: inherit; padding: .5rem 1.2rem; border: 1px solid #6b7680; border-radius: 6px; background: #fff; color: #1f2328; cursor: pointer; }
button.first { margin-top: .6rem; background: #1a5fb4; border-color: #1a5fb4; color: #fff; }
button:focus-visible, summary:focus-visible, a:focus-visible { outline: 3px solid #1a5fb4; outline-offset: 2px; }
.alert { color: #b3261e; font-weight: 600; flex-basis: 100%; margin: 0; }
.alert:empty { display: none; }
details { border-bottom: 1px solid #d5d8dc; padding: .4rem 0; }
summary { cursor: pointer; font-weight: 600; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
@media (min-width: 900px) {
  .two { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
  .side { position: sticky; top: 4.2rem; align-self: start; max-height: calc(100vh - 5rem); overflow-y: auto; }
}
"""
# Panel's own page lacks the line that makes a phone show it at its width.
TEMPLATE = """{% extends base %}
{% block postamble %}<meta name="viewport" content="width=device-width, initial-scale=1"><style>body { margin: 0; }</style>{% endblock %}
{% block contents %}{{ embed(roots.page) }}{% endblock %}"""


class Form(pn.custom.JSComponent):
    """What is shown, as blocks, and a problem to tell; the browser's answers come as messages."""

    view = param.Dict()
    problem = param.Dict()
    _esm = SCRIPT
    _stylesheets = [STYLE]


def support_blocks() -> list[dict]:
    """The verified services of the registry for somebody who is affected themselves, a block a country, directories first."""
    rows = registry()
    rows = rows[(rows.status == "verified") & (rows.cluster != "weapons") & rows.role.str.split("|").map(lambda roles: "survivor" in roles)]
    return [
        {
            "kind": "services", "summary": country, "open": region == "INT",
            "services": [
                [f"{contact_text(service)} - {service.scope}".removesuffix(" - "), service.url]
                for _, service in rows[rows.region == region].drop_duplicates("name").iterrows()
            ],
        }
        for region, country in COUNTRIES.items() if region in set(rows.region)
    ]


def question_blocks(items: dict[str, dict]) -> list[dict]:
    """Rubric items as radio buttons with their words; yes/no items stand in one line."""
    return [
        {
            "kind": "radios", "name": name, "legend": item["question"], "inline": len(item["scale"]) == 2,
            "options": [[str(s), words if len(item["scale"]) == 2 else f"{s}: {words}"] for s, words in item["levels"].items()],
        }
        for name, item in items.items()
    ]


def read_scores(values: dict[str, list[str]], items: dict[str, dict]) -> dict[str, int] | None:
    """The scores that a browser sent, or None unless every item has one of its scale."""
    sent = {name: values.get(name, [""])[0] for name in items}
    return {name: int(score) for name, score in sent.items()} if all(sent[n] in map(str, items[n]["scale"]) for n in items) else None


class Session:
    """One browser tab: who rates, what is shown, and when the last break was."""

    def __init__(self, folder: Path):
        self.folder, self.study, self.form, self.actions = Path(folder), read_study(folder), Form(sizing_mode="stretch_width"), {}
        self.form.on_msg(lambda event: self.handle(event.data))
        self.show_sign_in()

    def show(self, heading: str, blocks: list[dict], button: str, action, *, side: list[dict] = (), stop: bool = False) -> None:
        """Draw a page with one button and what that does, and where wanted a Stop button."""
        number = self.form.view["number"] + 1 if self.form.view else 1
        self.actions = {"go_on": action} | ({"stop": self.show_stop} if stop else {})
        self.form.view = {"number": number, "heading": heading, "side": list(side), "blocks": blocks, "button": button, "stop": stop}

    def handle(self, message: dict) -> None:
        """A button of the page that is shown; a late message, as of a second click, belongs to a page that has gone, and does nothing."""
        if message["number"] == self.form.view["number"] and message["button"] in self.actions:
            try:
                self.actions[message["button"]](message["values"])
            except (ValueError, OSError) as error:  # an unknown name, a full disk
                self.form.problem = {"number": message["number"], "text": str(error)}

    def todo(self) -> list:
        """Entries of the plan that have no rating yet, in order; read anew, because another tab may have saved some."""
        saved = saved_rows(self.folder, self.rater)
        self.n_skipped = sum(row["skipped"] for row in saved.values())
        return [entry for entry in self.plan.itertuples() if (entry.item, entry.kind) not in saved]

    def show_sign_in(self, _=None) -> None:
        field = {"kind": "field", "name": "rater", "label": "Your name in this study"}
        self.show("Rating answers", [field], "Sign in", self.sign_in)

    def sign_in(self, values: dict) -> None:
        """The content note, with a box to leave out each topic that is still to come; a ValueError for a name that is not in the plan."""
        name = values["rater"][0].strip()
        self.plan, self.rater = rater_plan(self.folder, name), name
        clusters = {entry.cluster for entry in self.todo()}
        options = [[cluster, words] for cluster, words in CLUSTER_NAMES.items() if cluster in clusters]
        opt_out = [{"kind": "checks", "name": "skip", "legend": "Leave out messages about (your choice can't be undone):", "options": options}] if options else []
        blocks = [{"kind": "text", "text": CONTENT_NOTE}, {"kind": "text", "text": TASK}, *opt_out]
        self.show("Before you begin", blocks, "Begin", self.begin, stop=True)

    def begin(self, values: dict) -> None:
        """Save what the rater leaves out as skipped, then go on with the rest."""
        for entry in self.todo():
            if entry.cluster in values.get("skip", []):
                save_rating(self.folder, self.rater, entry.item, entry.kind, {}, skipped=True)
        self.go_on()

    def go_on(self, _=None) -> None:
        """The next answer, with the time to the next break starting anew."""
        self.rated, self.since = 0, time.monotonic()
        self.show_next()

    def show_next(self) -> None:
        """The first entry without a rating; a break where one is due; the end where none is left."""
        todo = self.todo()
        if not todo:
            return self.show_end()
        if self.rated >= self.study["break_items"] or time.monotonic() - self.since >= 60 * self.study["break_minutes"]:
            return self.show_break()
        self.entry, self.shown_at, total = todo[0], time.monotonic(), len(self.plan) - self.n_skipped
        side = [{"kind": "quote", "label": "Message", "text": self.entry.prompt}, {"kind": "quote", "label": "Response to rate", "text": self.entry.response or "(empty)"}]
        self.items = items_to_rate(self.study["rubric"], self.entry.cluster)
        self.show(f"{total - len(todo) + 1} of {total}", question_blocks(self.items), "Next", self.save, side=side, stop=True)

    def save(self, values: dict) -> None:
        """Save the scores of the answer that is shown, then show the next."""
        scores = read_scores(values, self.items)
        if scores is None:
            raise ValueError("Some questions are not answered yet.")
        save_rating(self.folder, self.rater, self.entry.item, self.entry.kind, scores, seconds=round(time.monotonic() - self.shown_at, 1))
        self.rated += 1
        self.show_next()

    def show_break(self) -> None:
        text = "Everything is saved. Stand up, look out of the window, drink something; go on when you like, today or another day."
        self.show("Time for a break?", [{"kind": "text", "text": text}], "Go on", self.go_on, stop=True)

    def show_stop(self, _=None) -> None:
        text = "Everything is saved, up to the last answer that you finished. You can close this page; sign in with the same name to go on later."
        self.show("You have stopped", [{"kind": "text", "text": f"{text} {SUPPORT}"}, *support_blocks()], "Sign in again", self.show_sign_in)

    def show_end(self) -> None:
        text = "You have rated everything, and it is saved. Thank you."
        self.show("Done", [{"kind": "text", "text": f"{text} {SUPPORT}"}, *support_blocks()], "Sign in as somebody else", self.show_sign_in)


def rating_page(folder: Path) -> pn.Column:
    """The rating page of a study, to be shown in a notebook or served; raters sign in with a name of its plan.

    Raises:
        ValueError: When the folder holds no study.
    """
    pn.extension(inline=True)  # scripts from here, not from a network
    return pn.Column(Session(folder).form, sizing_mode="stretch_width")


def serve(folder: Path, port: int = 5006) -> None:
    """Serve the rating page at http://127.0.0.1:<port>, to this computer alone, until it is stopped by Ctrl-C.

    Raises:
        ValueError: When the folder holds no study.
    """
    read_study(folder)

    def page():
        template = pn.Template(TEMPLATE)
        template.add_panel("page", rating_page(folder))
        return template

    origins = [f"127.0.0.1:{port}", f"localhost:{port}"]
    pn.serve(page, port=port, address="127.0.0.1", websocket_origin=origins, show=False, title="Rating answers")
