// What a node says about its results, ComfyUI keeps under `text` and does not draw. Here our nodes get a box for it,
// which is no part of the workflow: it goes neither into saved files nor into prompts.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const BOX = "likeness_text";
const shown = new WeakMap();

function boxOf(node) {
  const box = ComfyWidgets.STRING(node, BOX, ["STRING", { multiline: true }], app).widget;
  box.serialize = false;
  box.options.serialize = false;
  (box.element ?? box.inputEl).readOnly = true;
  return box;
}

function show(node, output) {
  if (!output || shown.get(node) === output) return;
  shown.set(node, output);
  const text = (output.text ?? []).join("\n");
  const old = node.widgets?.find((widget) => widget.name === BOX);
  if (!text && !old) return;
  const box = old ?? boxOf(node);
  box.value = text;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  app.graph.setDirtyCanvas(true);
}

app.registerExtension({
  name: "Likeness.Text",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Likeness")) return;
    const { onExecuted, onDrawBackground } = nodeType.prototype;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      show(this, output);
    };
    // Results also come without a run: from the history, or when a tab is entered again.
    nodeType.prototype.onDrawBackground = function () {
      onDrawBackground?.apply(this, arguments);
      show(this, app.nodeOutputs?.[this.id]);
    };
  },
});
