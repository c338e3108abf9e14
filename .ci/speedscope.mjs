// Reads profiles with speedscope's own importer, out of its package, and prints what it found.
//
//     node .ci/speedscope.mjs node_modules/speedscope/dist/release/speedscope-*.js FILE...
//
// The package has the importer only within its page, a script. So the script is run without its last
// statement, which draws the page, in a world that has nothing to draw on.
import fs from 'node:fs'
import vm from 'node:vm'

const [bundle, ...files] = process.argv.slice(2)
const whole = fs.readFileSync(bundle, 'utf8')
const [, module] = /(\w+),\{importFromFileSystemDirectoryEntry:/.exec(whole)
const [, begin] = new RegExp(`\\((\\w+)\\(\\),${module}\\)`).exec(whole)
const page = whole.lastIndexOf('console.log(`speedscope v')
const script = `${whole.slice(0, page)}globalThis.load=(${begin}(),${module}).importProfilesFromArrayBuffer})();`

const nothing = new Proxy(function () {}, {
    get: (_, key) => (key === Symbol.toPrimitive ? () => '' : nothing),
    set: () => true,
    apply: () => nothing,
    construct: () => nothing,
})
const quiet = { ...console, log() {} }
const world = { console: quiet, TextDecoder, TextEncoder, URL, atob, btoa, performance, setTimeout, clearTimeout }
for (const name of ['document', 'navigator', 'location', 'localStorage', 'Worker', 'HTMLElement', 'addEventListener']) {
    world[name] = nothing
}
const context = vm.createContext(world)
context.self = context.window = context
vm.runInContext(script, context)

const found = []
for (const file of files) {
    const { buffer } = new Uint8Array(fs.readFileSync(file))
    const group = await context.load(file, buffer)
    if (group === null) throw new Error(`speedscope does not know what ${file} is`)
    const [profile] = group.profiles
    const frames = {}
    profile.forEachFrame(frame => {
        const [self, total] = frames[frame.name] ?? [0, 0]
        frames[frame.name] = [self + frame.getSelfWeight(), total + frame.getTotalWeight()]
    })
    found.push({ profiles: group.profiles.length, unit: profile.getWeightUnit(), total: profile.getTotalWeight(), frames })
}
console.log(JSON.stringify(found))
