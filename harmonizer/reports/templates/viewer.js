// Slices before and after harmonization with a wipe, three planes, and overlays.
for (const viewer of document.querySelectorAll(".viewer")) {
  const wipe = viewer.querySelector(".wipe");
  const overlay = name => viewer.querySelector(`[data-overlay="${name}"]`).checked;
  const planes = [...viewer.querySelectorAll(".plane")].map(box => {
    const images = {};
    for (const image of box.querySelectorAll("img")) images[image.dataset.stage] = image;
    const canvas = box.querySelector("canvas");
    return {images, canvas, slice: box.querySelector("input"), place: box.querySelector("output"),
            context: canvas.getContext("2d", {willReadFrequently: true}),
            positions: JSON.parse(box.dataset.positions), axis: box.dataset.axis};
  });
  // Red where the image after is brighter, blue where it is darker; full color at a quarter of the
  // window, nothing below 3 %.
  const change = (context, image, top, width, height) => {
    const pixels = stage => {
      context.drawImage(image[stage], 0, top, width, height, 0, 0, width, height);
      return context.getImageData(0, 0, width, height);
    };
    const before = pixels("before").data, after = pixels("after");
    for (let i = 0; i < before.length; i += 4) {
      const difference = (after.data[i] - before[i]) / 255;
      const strength = Math.abs(difference) < 0.03 ? 0 : Math.min(1, Math.abs(difference) * 4);
      const gray = after.data[i] * (1 - strength);
      after.data[i] = gray + (difference > 0 ? 214 : 33) * strength;
      after.data[i + 1] = gray + (difference > 0 ? 60 : 113) * strength;
      after.data[i + 2] = gray + (difference > 0 ? 50 : 200) * strength;
    }
    context.putImageData(after, 0, 0);
  };
  const draw = plane => {
    const {canvas, context, images} = plane, {width, height} = canvas;
    const top = plane.slice.value * height, edge = Math.round(width * wipe.value / 100);
    context.clearRect(0, 0, width, height);
    if (overlay("change")) {
      change(context, images, top, width, height);
    } else {
      context.drawImage(images.after, 0, top, width, height, 0, 0, width, height);
      if (edge) context.drawImage(images.before, 0, top, edge, height, 0, 0, edge, height);
    }
    if (overlay("outlines")) {
      context.drawImage(images.outlines, 0, top, width, height, 0, 0, width, height);
    }
    if (edge > 0 && edge < width && !overlay("change")) {
      context.fillStyle = "#ffffff";
      context.fillRect(edge, 0, 1, height);
    }
    plane.place.textContent = `${plane.axis} = ${plane.positions[plane.slice.value]} mm`;
  };
  const drawAll = () => planes.forEach(draw);
  for (const plane of planes) {
    plane.slice.addEventListener("input", () => draw(plane));
    const drag = event => {
      if (!(event.buttons & 1)) return;
      const place = plane.canvas.getBoundingClientRect();
      wipe.value = 100 * (event.clientX - place.left) / place.width;
      drawAll();
    };
    plane.canvas.addEventListener("pointerdown", event => {
      plane.canvas.setPointerCapture(event.pointerId);
      drag(event);
    });
    plane.canvas.addEventListener("pointermove", drag);
    plane.canvas.addEventListener("wheel", event => {
      if (!event.shiftKey) return;
      event.preventDefault();
      plane.slice.value = +plane.slice.value + Math.sign(event.deltaY || event.deltaX);
      draw(plane);
    }, {passive: false});
  }
  wipe.addEventListener("input", drawAll);
  for (const box of viewer.querySelectorAll("[data-overlay]")) box.addEventListener("change", drawAll);
  const images = planes.flatMap(plane => Object.values(plane.images));
  const seen = new IntersectionObserver(entries => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    seen.disconnect();
    Promise.all(images.map(image => image.decode())).then(() => {
      drawAll();
      viewer.dataset.ready = "yes";
    });
  }, {rootMargin: "300px"});
  viewer.hidden = false;
  seen.observe(viewer);
}
