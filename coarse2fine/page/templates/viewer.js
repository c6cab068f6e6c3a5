"use strict";
// Starts NiiVue on the volume that this page holds. Keys work on the canvas once it has the focus.
(async function () {
  const canvas = document.getElementById("volume");
  const message = document.getElementById("viewer-message");
  const controls = document.getElementById("viewer-controls");
  const say = (text) => { message.textContent = text; message.hidden = false; };
  if (!document.createElement("canvas").getContext("webgl2")) {
    canvas.hidden = controls.hidden = true;
    say("This browser shows no volumes: it has no WebGL 2. The slices above show the finding; a current Firefox, Chrome, Edge or Safari shows the volume, too.");
    return;
  }
  const held = (id) => JSON.parse(document.getElementById(id).textContent);
  const about = held("viewer-data");
  try {
    const viewer = new niivue.Niivue({
      isRadiologicalConvention: true, isResizeCanvas: true, backColor: [0, 0, 0, 1], dragAndDropEnabled: false,
      multiplanarShowRender: 0, sagittalNoseLeft: true, isOrientationTextVisible: about.patient, loadingText: "",
      crosshairColor: [1, 1, 1, 0.6], crosshairWidth: 0.6, logLevel: "error",
    });
    await viewer.attachToCanvas(canvas);
    const image = await niivue.NVImage.loadFromBase64({ base64: about.image, name: "image.nii.gz", cal_min: about.low, cal_max: about.high });
    const labels = await niivue.NVImage.loadFromBase64({ base64: about.labels, name: "labels.nii.gz", opacity: 0.5 });
    labels.setColormapLabel(about.colours);
    viewer.volumes.push(image, labels);
    viewer.setVolume(image, 0); // draws both, once
    viewer.scene.crosshairPos = viewer.mm2frac(about.place);
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    for (const choice of controls.querySelectorAll("input[name=view]")) {
      choice.addEventListener("change", () => { viewer.setSliceType(viewer[choice.value]); });
    }
    const opacity = document.getElementById("opacity");
    opacity.addEventListener("input", () => { viewer.setOpacity(1, opacity.value / 100); });
    const steps = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
    canvas.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      // On screens of radiologists the patient's right is on the left.
      viewer.moveCrosshairInVox(-step[0], step[1], step[2]);
    });
    document.documentElement.dataset.viewer = "ready";
    window.c2fViewer = viewer;
  } catch (error) {
    say("The volume cannot be shown: " + error.message);
    document.documentElement.dataset.viewer = "failed";
  }
})();
