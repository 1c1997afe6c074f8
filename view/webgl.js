/* Drawing with WebGL 2: floor, trail, shadow, and the mannequin or a stretched capsule a bone.

     const paint = webgl(player);                          // on player.canvas
     paint(motion, n, [x, y, width, height], head, camera) // a cell of it, in pixels */

const FLOOR = 7;  // metres from the middle to where the floor has faded away

const BODY = `#version 300 es
precision highp float;
uniform mat4 camera; uniform vec3 joints[64]; uniform float kinds[64];
uniform vec4 bones[64];  // from joint, to joint, the radius at each
uniform vec3 palette[4]; uniform vec3 light; uniform float shadow;
in vec4 point;  // on a unit ball, Z along the bone; w: 0 on the first half, 1 on the second
out vec3 normal; out vec3 world; out vec3 tint; out float height;
void main() {
  vec4 bone = bones[gl_InstanceID];
  vec3 a = joints[int(bone.x)], b = joints[int(bone.y)];
  vec3 along = normalize(b - a + vec3(0, 1e-6, 0));
  vec3 side = normalize(cross(along, abs(along.y) < 0.9 ? vec3(0, 1, 0) : vec3(1, 0, 0)));
  normal = mat3(side, cross(along, side), along) * point.xyz;
  world = mix(a + normal * bone.z, b + normal * bone.w, point.w);
  height = max(world.y, 0.0);
  if (shadow > 0.0) world = vec3(world.xz - light.xz / light.y * height, 0).xzy;
  tint = palette[int(kinds[gl_InstanceID])];
  gl_Position = camera * vec4(world, 1);
}`;
const SHADE = `#version 300 es
precision highp float;
uniform vec3 eye; uniform vec3 light; uniform float shadow;
in vec3 normal; in vec3 world; in vec3 tint; in float height; out vec4 colour;
void main() {
  if (shadow > 0.0) { colour = vec4(0, 0, 0, shadow * exp(-0.9 * height)); return; }
  vec3 n = normalize(normal), v = normalize(eye - world);
  float lamp = max(0.25 + 0.75 * dot(n, light), 0.0), sky = 0.5 + 0.5 * n.y;
  float rim = pow(1.0 - max(dot(n, v), 0.0), 3.0);
  float shine = pow(max(dot(n, normalize(light + v)), 0.0), 40.0);
  colour = vec4(tint * (0.54 + 0.18 * sky + 0.4 * lamp) + 0.12 * shine + 0.12 * rim * sky, 1);
}`;
const SKIN = `#version 300 es
uniform mat4 camera;
layout(location = 1) in vec3 place; layout(location = 2) in vec3 outward;
layout(location = 3) in vec3 hue;
out vec3 normal; out vec3 world; out vec3 tint; out float height;
void main() {
  normal = outward; world = place; tint = hue; height = 0.0;
  gl_Position = camera * vec4(place, 1);
}`;
const GROUND = `#version 300 es
uniform mat4 camera; uniform vec3 middle;  // x, z, radius
out vec2 place;
void main() {
  place = middle.xy + middle.z * (vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0);
  gl_Position = camera * vec4(place.x, 0, place.y, 1);
}`;
const GRID = `#version 300 es
precision highp float;
uniform vec3 middle; uniform vec4 marks[2]; uniform vec3 line; uniform vec3 contact;
in vec2 place; out vec4 colour;
float lines(float step) {  // antialiased, and faded out where they would be denser than the pixels
  vec2 p = place / step, wide = max(fwidth(p), 1e-6), near = abs(fract(p - 0.5) - 0.5) / wide;
  return (1.0 - min(min(near.x, near.y), 1.0)) * (1.0 - smoothstep(0.15, 0.5, max(wide.x, wide.y)));
}
void main() {
  float fade = 1.0 - smoothstep(0.25, 1.0, length(place - middle.xy) / middle.z);
  colour = vec4(line, fade * max(lines(1.0), 0.4 * lines(0.25)));
  for (int i = 0; i < 2; i++) {
    // how far from the line between ankle and toe, in units of the ring's radius
    vec2 a = marks[i].xy, along = marks[i].zw - a, off = place - a;
    float share = clamp(dot(off, along) / (dot(along, along) + 1e-9), 0.0, 1.0);
    float away = length(off - along * share) / 0.1;
    float inside = 1.0 - smoothstep(0.0, 1.0, away);
    float glow = 0.4 * inside + 0.85 * (1.0 - smoothstep(0.0, 0.14, abs(away - 0.86)));
    colour = vec4(mix(colour.rgb, contact, glow / (colour.a + glow + 1e-4)), max(colour.a, glow));
  }
}`;
const RIBBON = `#version 300 es
uniform mat4 camera; uniform float wide;
in vec4 point;  // x, z, the angle at which this edge lies, second
out float second;
void main() {
  vec2 place = point.xy + wide * vec2(cos(point.z), sin(point.z));
  second = point.w; gl_Position = camera * vec4(place.x, 0, place.y, 1);
}`;
const TRAIL = `#version 300 es
precision highp float;
uniform vec3 trail; uniform float now; in float second; out vec4 colour;
void main() { colour = vec4(trail, second > now ? 0.16 : 0.3 + 0.6 * exp(second - now)); }`;

/** A ball of `rings` x `around` faces, cut at its equator: corners (x, y, z, half), triangles. */
function capsule(rings, around) {
  const corners = [], faces = [];
  for (let i = 0; i <= rings + 1; i++) for (let j = 0; j <= around; j++) {
    const half = i > rings / 2 ? 1 : 0, turn = 2 * Math.PI * j / around;
    const up = Math.PI * ((i - half) / rings - 0.5), r = Math.cos(up);
    corners.push(r * Math.cos(turn), r * Math.sin(turn), Math.sin(up), half);
    const here = i * (around + 1) + j, above = here + around + 1;
    if (i <= rings && j < around) faces.push(here, here + 1, above + 1, here, above + 1, above);
  }
  return [corners, faces];
}

/** The path on the floor as a triangle strip, left and right edge: (x, z, angle, second). */
function ribbon(motion) {
  return motion.ground.flatMap(([x, z], t) => {
    const a = motion.ground[Math.max(t - 2, 0)];
    const b = motion.ground[Math.min(t + 2, motion.frames - 1)];
    const aside = Math.atan2(b[1] - a[1], b[0] - a[0]) + Math.PI / 2;
    return [x, z, aside, t / motion.fps, x, z, aside + Math.PI, t / motion.fps];
  });
}

/** Is there WebGL 2 on a graphics card? Where the processor imitates one, the plain drawing below
    is ten times faster. */
function graphicsCard() {
  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl || location.hash === "#gl") return !!gl;
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const name = gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
  return !/swiftshader|llvmpipe|software|basic render/i.test(name);
}

function webgl(player) {
  const {canvas, colours, mannequin} = player;
  const gl = canvas.getContext("webgl2", {alpha: false, stencil: true});
  const setter = {[gl.FLOAT]: "uniform1fv", [gl.FLOAT_VEC3]: "uniform3fv",
                  [gl.FLOAT_VEC4]: "uniform4fv"};
  const program = (...sources) => {
    const made = gl.createProgram(), uniforms = {};
    sources.forEach((source, i) => {
      const shader = gl.createShader(i ? gl.FRAGMENT_SHADER : gl.VERTEX_SHADER);
      gl.shaderSource(shader, source); gl.compileShader(shader); gl.attachShader(made, shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost())
        throw new Error(gl.getShaderInfoLog(shader));
    });
    gl.bindAttribLocation(made, 0, "point"); gl.linkProgram(made);
    for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
      const {name, type} = gl.getActiveUniform(made, i);
      uniforms[name.replace("[0]", "")] = [gl.getUniformLocation(made, name), type];
    }
    return values => {  // use this program with these uniforms, {name: numbers}
      gl.useProgram(made);
      for (const [name, value] of Object.entries(values)) {
        const [place, type] = uniforms[name] || [];
        if (type === gl.FLOAT_MAT4) gl.uniformMatrix4fv(place, false, value);
        else if (type) gl[setter[type]](place, value);
      }
    };
  };
  const mesh = (numbers, faces = []) => {  // four numbers a corner
    const made = gl.createVertexArray();
    gl.bindVertexArray(made); gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(numbers), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0); gl.vertexAttribPointer(0, 4, gl.FLOAT, false, 0, 0);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, new Uint16Array(faces), gl.STATIC_DRAW);
    return Object.assign(made, {count: faces.length || numbers.length / 4});
  };
  const body = program(BODY, SHADE), grid = program(GROUND, GRID), line = program(RIBBON, TRAIL);
  const skin = program(SKIN, SHADE), empty = gl.createVertexArray();
  const [fine, plain, rough] = [[14, 32], [8, 18], [4, 10]].map(size => mesh(...capsule(...size)));
  const kept = new WeakMap();  // what is uploaded once for each motion
  const uploaded = motion => {
    if (!kept.has(motion)) kept.set(motion, {
      ribbon: mesh(ribbon(motion)),
      bones: new Float32Array(motion.bones.flatMap(bone => bone.slice(0, 4)))});
    return kept.get(motion);
  };
  const capsules = (mesh, count) => {
    gl.bindVertexArray(mesh);
    gl.drawElementsInstanced(gl.TRIANGLES, mesh.count, gl.UNSIGNED_SHORT, 0, count);
  };
  const figure = mannequin && gl.createVertexArray(), flesh = gl.createBuffer();
  if (mannequin) {
    gl.bindVertexArray(figure); gl.bindBuffer(gl.ARRAY_BUFFER, flesh);
    gl.bufferData(gl.ARRAY_BUFFER, mannequin.corners.byteLength, gl.STREAM_DRAW);
    for (let k = 0; k < 3; k++) {
      gl.enableVertexAttribArray(1 + k);
      gl.vertexAttribPointer(1 + k, 3, gl.FLOAT, false, 36, 12 * k);
    }
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mannequin.faces, gl.STATIC_DRAW);
  }
  gl.enable(gl.SCISSOR_TEST); gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);

  return (motion, n, [x, y, width, height], head, {eye, matrix, target, reach}) => {
    const {ribbon, bones} = uploaded(motion);
    const bottom = canvas.height - y - height;
    gl.viewport(x, bottom, width, height); gl.scissor(x, bottom, width, height);
    gl.clearColor(...colours.background, 1); gl.depthMask(true);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT | gl.STENCIL_BUFFER_BIT);

    // The floor lies under everything, even under a foot that sinks into it.
    gl.disable(gl.DEPTH_TEST); gl.enable(gl.BLEND);
    grid({camera: matrix, middle: [target[0], target[2], FLOOR + reach], marks: motion.marks,
          line: colours.line, contact: colours.contact});
    gl.bindVertexArray(empty); gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    line({camera: matrix, trail: colours.trail, now: [player.clock.time],
          wide: [0.018 + 0.006 * reach]});
    gl.bindVertexArray(ribbon); gl.drawArrays(gl.TRIANGLE_STRIP, 0, ribbon.count);

    // The shadow: the stencil lets it darken each pixel once only.
    gl.enable(gl.STENCIL_TEST); gl.stencilFunc(gl.EQUAL, 0, 255);
    gl.stencilOp(gl.KEEP, gl.KEEP, gl.INCR);
    const {middle, left, right, contact} = colours;
    const palette = [middle, left, right, contact];
    body({camera: matrix, joints: motion.pose, bones, kinds: motion.kinds, light: LIGHT, eye,
          palette: palette.flat(), shadow: [colours.shadow]});
    capsules(rough, motion.bones.length);

    gl.disable(gl.STENCIL_TEST); gl.disable(gl.BLEND);
    gl.enable(gl.DEPTH_TEST); gl.enable(gl.CULL_FACE);
    if (player.isMannequin(motion)) {
      mannequin.bend(motion, palette);
      gl.bindBuffer(gl.ARRAY_BUFFER, flesh);
      gl.bufferSubData(gl.ARRAY_BUFFER, 0, mannequin.corners);
      skin({camera: matrix, light: LIGHT, eye, shadow: [0]});
      gl.bindVertexArray(figure);
      gl.drawElements(gl.TRIANGLES, mannequin.faces.length, gl.UNSIGNED_SHORT, 0);
    } else {
      body({shadow: [0]});
      capsules(player.motions.length > 2 ? plain : fine, motion.bones.length);
    }
    gl.disable(gl.CULL_FACE);
  };
}

