const input = element.querySelector("input"), image = element.querySelector("img");
const hint = element.querySelector(".hint"), remove = element.querySelector(".remove"), drop = element.querySelector(".drop");

const megabytes = Number(element.querySelector(".image-input").dataset.megabytes), invitation = hint.textContent;

function show(content) {
    props.value = content;
    image.src = content;
    image.hidden = remove.hidden = !content;
    hint.hidden = Boolean(content);
    hint.textContent = invitation;
    if (!content) { image.removeAttribute("src"); input.value = ""; }
}

function read(file) {
    if (!file) return;
    if (file.size > megabytes * 1e6) {
        show("");
        hint.textContent = `The file is larger than ${megabytes} MB. Choose a smaller one.`;
        return;
    }
    const reader = new FileReader();
    reader.onload = () => show(reader.result);
    reader.readAsDataURL(file);
}

input.addEventListener("change", () => read(input.files[0]));
remove.addEventListener("click", () => { show(""); input.focus(); });
for (const name of ["dragenter", "dragover", "dragleave", "drop"])
    drop.addEventListener(name, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", name === "dragenter" || name === "dragover");
    });
drop.addEventListener("drop", (event) => read(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => {
    const file = Array.from(event.clipboardData.files).find((each) => each.type.startsWith("image/"));
    // Of several inputs the one that is visible; the first, if there are two.
    const visible = Array.from(document.querySelectorAll(".image-input")).find((each) => each.offsetParent);
    if (file && element.contains(visible)) read(file);
});
